"""Scenarios: a question, a run, pictures, checks."""
