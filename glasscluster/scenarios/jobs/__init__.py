"""The bodies of commands, used by lessons too."""
