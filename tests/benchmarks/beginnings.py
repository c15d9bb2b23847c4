"""Beginnings of what expressions for personal data look for, which may cost them most."""

UNITS = (
    *("a", "1.", "1-", "+1", "eyJ-", "a@", "a@b.", "-----BEGIN PRIVATE KEY-----", "key=", "sk-"),
    *("password: ", "::", "2001:", "0123 ", "(415) ", "<p ", "<b>", "&amp"),
)
