"""Show-o (arXiv 2408.12528): next-token text and masked-token images in one Phi-1.5."""
