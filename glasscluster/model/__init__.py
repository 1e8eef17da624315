"""A small GPT and what trains it: torch only, nothing of clusters."""
