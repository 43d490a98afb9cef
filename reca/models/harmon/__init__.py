"""Harmon (arXiv 2503.21979): a shared masked autoencoder around Qwen2.5, with a diffusion head."""
