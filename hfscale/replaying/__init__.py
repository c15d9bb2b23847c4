"""A finished run done again from its record, and the first thing that differs."""
