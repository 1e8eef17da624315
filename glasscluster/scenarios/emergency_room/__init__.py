"""Ways to ruin a training run, and the probes that distinguish them."""
