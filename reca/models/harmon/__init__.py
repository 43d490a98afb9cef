"""Harmon (arXiv 2503.21979): one masked autoencoder that reads and draws, around Qwen2.5, with a diffusion head."""
