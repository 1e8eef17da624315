"""Training strategies, one a file, composed by `trainer.py`."""
