"""Measurements that a person runs by hand; each writes one file under docs/results/."""
