"""Timeline and graph in, plotly figure and report out. Knows no strategy."""
