"""Backends: a backend starts ranks and moves their messages, and does nothing else."""
