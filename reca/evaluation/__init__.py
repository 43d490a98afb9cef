"""Benchmarks: prompts, samples, observations and pure scoring. Scoring needs no torch, so it runs anywhere."""
