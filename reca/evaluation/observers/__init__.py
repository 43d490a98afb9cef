"""Observers of a benchmark's samples: one module per kind of evidence, each with `observe(view)`."""
