"""Data sets: readers of common formats, prompts, and the order in which training sees samples."""
