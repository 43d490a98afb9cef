"""Show-o's weight files: how their official names relate to our modules, and the released manifests.

Three files make a model: the Show-o network, the MAGVIT-v2 tokenizer and, for the CLIP variant, the
CLIP vision tower. Source: reference/showo/SPEC.md section 1.
"""

from __future__ import annotations

import json
from importlib.resources import files

from reca.models.common.naming import Naming

RELEASED = ("show-o", "show-o-w-clip-vit", "magvitv2", "clip-vit-large-patch14-336")
NETWORK = Naming()
MAGVIT = Naming(constants=("quantize.embedding", "quantize.power_vals"))
CLIP = Naming(
    # transformers 5 dropped the prefix; the hub's file also holds the text half of CLIP
    prefix="vision_model.",
    foreign=r"^(text_model\.|text_projection\.|visual_projection\.|logit_scale|.*\.position_ids$)",
)


def released_manifest(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Official names, shapes and dtypes of a released checkpoint, one of `RELEASED`."""
    if name not in RELEASED:
        raise ValueError(f"no manifest of {name!r}; there are: {', '.join(RELEASED)}")
    text = (files("reca.models.showo.manifests") / f"{name}.json").read_text()
    return {key: (tuple(shape), dtype) for key, (shape, dtype) in json.loads(text).items()}
