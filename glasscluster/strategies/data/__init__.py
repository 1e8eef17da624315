"""Data parallelism and the ZeRO stages."""
