"""The planner: which layout of a model on some GPUs is the quickest, and why the others are not."""
