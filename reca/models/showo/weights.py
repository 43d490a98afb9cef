"""Show-o's weight files: the mapping between official names and our modules.

Three files make a model: the Show-o network, the MAGVIT-v2 tokenizer and, for the CLIP variant, the
CLIP vision tower. Source: docs/reference/showo.md 1.
"""

from __future__ import annotations

from reca.models.common.naming import Naming

NETWORK = Naming()
MAGVIT = Naming(constants=("quantize.embedding", "quantize.power_vals"))
CLIP = Naming(
    # transformers 5 dropped the prefix; the Hub's file also contains CLIP's text model
    prefix="vision_model.",
    foreign=r"^(text_model\.|text_projection\.|visual_projection\.|logit_scale|.*\.position_ids$)",
)
