"""Losses and attention with gradients: autograd functions, and operators of torch in traced graphs."""
