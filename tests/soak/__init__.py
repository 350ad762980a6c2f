"""Random faults under load, for as long as asked, ending with a restore that must equal the source."""
