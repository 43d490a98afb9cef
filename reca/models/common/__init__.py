"""Code that model families share: everything around a network except its mathematics."""
