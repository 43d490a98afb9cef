"""The cache of frozen features, built once per model and data set and read by training."""
