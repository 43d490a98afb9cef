"""Harmon's weight files: the mapping between official names and our modules.

The network (`llm.*`, `mar.*`, `proj_in.*`, `proj_out.*`) and the KL-16 VAE come in separate files, or together
in the Hub's layout, where the VAE's names start with `vae.`. Source: docs/reference/harmon.md a and f.
"""

from __future__ import annotations

from reca.models.common import naming

TIED, EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"
INSIDE = "vae."
NETWORK = naming.Naming(
    own=("llm.", "mar.", "proj_in.", "proj_out."),
    foreign=r"\.rotary_emb\.inv_freq$",  # from older versions of transformers; computed, never learned
    tied={TIED: EMBEDDING},
)
VAE = naming.VAE
