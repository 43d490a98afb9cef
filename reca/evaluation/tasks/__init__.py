"""One module per benchmark: prompts in, pure scoring, summary."""
