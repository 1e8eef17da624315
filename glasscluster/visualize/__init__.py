"""Timeline and graph in, figure and report out. Knows no strategy."""
