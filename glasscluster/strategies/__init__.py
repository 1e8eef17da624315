"""Training strategies, a folder an axis, composed by `trainer.py`."""
