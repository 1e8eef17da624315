"""What a GPU would run as one kernel: torch library operators with forward, backward, shapes and costs."""
