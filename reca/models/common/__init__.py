"""What model families have in common: everything around a network that is not its own mathematics."""
