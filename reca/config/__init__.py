"""Typed experiments: the schema, Hydra composition, and the rules between fields."""
