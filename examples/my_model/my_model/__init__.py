"""A next-token model of text and image codes. `reca` finds it by the entry point in pyproject.toml."""

from reca.models.registry import Family

# Read while planning: no torch here.
FAMILY = Family("my_model", "My model", module="my_model.model", sampler_options=())
