"""Harmon's weight files: how their official names relate to our modules, and the released manifests.

The network (`llm.*`, `mar.*`, `proj_in.*`, `proj_out.*`) and the KL-16 VAE come in files of their own, or together
in the hub's layout, where the VAE's names begin with `vae.`. Source: reference/harmon/SPEC.md sections a and f.
"""

from __future__ import annotations

import json
from importlib.resources import files

from reca.models.common import naming

RELEASED = ("harmon_0.5b", "harmon_1.5b")
TIED, EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"
INSIDE = "vae."
NETWORK = naming.Naming(
    own=("llm.", "mar.", "proj_in.", "proj_out."),
    foreign=r"\.rotary_emb\.inv_freq$",  # of older transformers; computed, never learned
    tied={TIED: EMBEDDING},
)
VAE = naming.VAE


def released_manifest(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Official names, shapes and dtypes of a released model with its VAE, one of `RELEASED`."""
    if name not in RELEASED:
        raise ValueError(f"no manifest of {name!r}; there are: {', '.join(RELEASED)}")
    text = (files("reca.models.harmon.manifests") / f"{name}.json").read_text()
    return {key: (tuple(shape), dtype) for key, (shape, dtype) in json.loads(text).items()}
