"""PostgreSQL's own regression tests, run against a source under capture, restored and compared: `make regress`."""
