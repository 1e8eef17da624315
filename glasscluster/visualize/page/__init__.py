"""The report: page, templates, words in both languages."""
