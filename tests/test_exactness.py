"""Every plan gives the gradients and weights of one device."""
