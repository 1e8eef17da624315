"""Generation, batching, speculation and evaluation on ranks."""
