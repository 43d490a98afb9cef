"""Making the laptop's base models from nothing: words, image tokenizer, reader, language model. The
paper's families start from released checkpoints instead and never come here.

One module per family (`toyworld.pretrain.<family>`) says what its parts are; none is imported before it is asked for.
"""

FAMILIES = ("showo", "harmon", "bagel")


def pretraining_module(family: str) -> str:
    """Module path of a family's pre-training; ValueError where the family has none."""
    if family not in FAMILIES:
        raise ValueError(
            f"family {family!r} cannot be pre-trained here; choose one of: {', '.join(FAMILIES)}"
        )
    return f"reca.toyworld.pretrain.{family}"
