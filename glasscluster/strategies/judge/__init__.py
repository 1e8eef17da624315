"""What judges a run: one device, the papers' accounts, advice, probes."""
