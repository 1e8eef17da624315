"""The commands of `glass`, one a file: what each prints. What they do is in glasscluster/scenarios."""
