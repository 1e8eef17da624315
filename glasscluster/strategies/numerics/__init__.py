"""Number formats, gradient norm and loss scale, and the decision whether a step is skipped."""
