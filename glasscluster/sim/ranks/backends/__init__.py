"""Backends: each only moves messages and starts ranks."""
