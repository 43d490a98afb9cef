"""BAGEL: rectified flow inside a mixture of transformers, drawing and editing."""
