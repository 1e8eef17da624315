"""What a GPU would run as one kernel: each a torch library operator with its forward, its backward, its shapes and its costs."""
