"""What NCCL would choose, and how long it would take."""
