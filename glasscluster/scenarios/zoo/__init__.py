"""Real bugs of the field, planted."""
