"""One module per benchmark: its prompts or questions, pure scoring functions, and the summary."""
