"""`python -m archiver` is the command `archiver`."""

import sys

from archiver.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
