"""What a block is made of: attention, norms, MLP and experts, positions, dropout."""
