"""Data sets: readers of common formats, prompts, and the order of samples in training."""
