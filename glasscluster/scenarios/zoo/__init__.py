"""Bugs that real frameworks had, planted here."""
