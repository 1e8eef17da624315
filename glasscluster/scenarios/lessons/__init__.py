"""The built-in lessons: each is a folder, `program.py` beside `text.toml` (see `scenarios/lesson.py`)."""
