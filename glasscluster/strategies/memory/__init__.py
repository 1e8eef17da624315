"""Recomputation: activations that are freed in forward and computed again in backward."""
