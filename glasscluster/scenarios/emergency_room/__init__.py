"""Ways to ruin a training run, and the probes that tell them apart."""
