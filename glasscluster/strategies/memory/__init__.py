"""Activations given up and computed again."""
