"""The cache of frozen features: built once per model and data set, then read by training."""
