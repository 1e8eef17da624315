"""The built-in lessons, each in a folder of its own: `program.py` beside `text.toml` (see `scenarios/lesson.py`)."""
