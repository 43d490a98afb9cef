"""Benchmarks: prompts in, pictures in, pure scoring, summary. No torch here: scoring runs anywhere."""
