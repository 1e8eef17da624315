"""Context parallelism: rings and Ulysses."""
