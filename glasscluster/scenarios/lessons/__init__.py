"""The built-in lessons, one a file, in the order of the curriculum."""
