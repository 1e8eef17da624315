"""How parameters are laid out over ranks: units of a flat buffer, padding, a whole model from its pieces."""
