"""Number formats, the loss scale, steps that are skipped."""
