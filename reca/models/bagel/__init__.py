"""BAGEL: a mixture of transformers with rectified flow; generation, understanding and editing."""
