"""Janus-Pro (arXiv 2501.17811): text and image codes by next tokens, in one Llama that reads through SigLIP."""
