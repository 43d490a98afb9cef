"""Show-o (arXiv 2408.12528): text by next tokens and images by masked tokens, in one Phi-1.5."""
