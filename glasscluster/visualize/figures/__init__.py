"""The figures: each file draws one kind of picture."""
