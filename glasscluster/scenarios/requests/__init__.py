"""What each command is asked for: a typed request with its options, and what they are made into."""
