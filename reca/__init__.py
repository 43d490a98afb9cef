"""reca: reproducible Reconstruction Alignment (RecA, arXiv 2509.07295) for unified multimodal models."""

__version__ = "0.1.0"
