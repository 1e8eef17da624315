"""Generation: caches, sampling, packed sequences, speculative decoding."""
