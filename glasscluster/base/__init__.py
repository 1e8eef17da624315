"""What every other folder may use and what uses none of them: no torch, no cluster, no model."""
