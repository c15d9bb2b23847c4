"""Runs that are killed, damaged and signalled on purpose; `python -m tests.faults --help`."""
