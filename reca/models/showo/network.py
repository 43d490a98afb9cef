"""Show-o's language model: Phi-1.5 with qk-LayerNorm over text and image codes, CLIP projector.

The frozen companions (MAGVIT-v2 in `magvit.py`, the CLIP tower of transformers) are held by
`model.py`; `Showo` is exactly what a Show-o checkpoint stores.
Source: docs/reference/showo.md 1.1, 1.2, 1.4 and 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any, Literal

import torch
from reca_kernels import Implementation
from reca_kernels import Layout as BlockLayout
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, CLIPVisionConfig, CLIPVisionModel, PhiConfig, PhiForCausalLM

from reca.models.showo import attention
from reca.models.showo.magvit import MagvitConfig

VICUNA_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

PHI_1_5: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
}
_WHOLE_LLM = tuple(name for name, value in PHI_1_5.items() if type(value) is int)
CLIP_LARGE_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
# What the architecture fixes; a described model may repeat these but not change them.
_PHI_FIXED = {"model_type": "phi", "qk_layernorm": True, "tie_word_embeddings": False}

_ADDED_TEXT_TOKENS = 10  # [PAD] and nine <|...|> tokens stand between the text ids and the codes
_BLOCKED = -(2.0**63)  # the official additive mask; finite, so a fully masked row stays finite


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens behind the text ids: [PAD], <|...|> tokens, image codes, MASK."""

    bos: int
    eos: int
    pad: int
    soi: int
    eoi: int
    sov: int
    eov: int
    t2i: int
    mmu: int
    t2v: int
    v2v: int
    lvg: int
    first_image: int
    mask: int

    @classmethod
    def of(cls, llm_vocab_size: int, codebook_size: int, endoftext: int) -> SpecialIds:
        """Lay the ids out behind the text ids; `endoftext` is both bos and eos (showo.md 1.4)."""
        names = ("pad", "soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")
        added = {name: llm_vocab_size + i for i, name in enumerate(names)}
        first_image = llm_vocab_size + _ADDED_TEXT_TOKENS
        return cls(
            bos=endoftext,
            eos=endoftext,
            first_image=first_image,
            mask=first_image + codebook_size,
            **added,
        )

    @property
    def codes(self) -> slice:
        """The vocabulary slice of the image codes (MASK excluded)."""
        return slice(self.first_image, self.mask)


@dataclass(frozen=True)
class ShowoConfig:
    """All numbers of a Show-o model; the defaults are the released 256-pixel VQ variant.

    `llm` and `clip_vision` are keyword arguments of PhiConfig and CLIPVisionConfig (but for the
    vocabulary size, which is derived). `max_text` is M of showo.md 3 (inference 128, RecA training
    576 for CLIP and 381 for VQ), `head_text` the fixed text head of the CLIP RecA layout.
    `clip_condition_normalise=False` and `vq_condition="half"` are the published recipe.
    """

    llm: dict[str, Any] = field(default_factory=lambda: dict(PHI_1_5))
    vq: MagvitConfig = field(default_factory=MagvitConfig)
    resolution: int = 256
    llm_vocab_size: int = 50295
    endoftext: int = 50256
    understanding: Literal["clip", "vq"] = "vq"
    clip_vision: dict[str, Any] | None = None
    projector: tuple[int, ...] = ()
    max_text: int = 128
    head_text: int = 128
    system_prompt: str = VICUNA_SYSTEM_PROMPT
    clip_condition_normalise: bool = False
    vq_condition: Literal["half", "blur8", "full"] = "half"

    def __post_init__(self) -> None:
        _refuse_unknown("network.llm", self.llm, PHI_1_5)
        _positive("network", vars(self), ("resolution", "llm_vocab_size", "max_text", "head_text"))
        _positive("network.llm", self.llm, _WHOLE_LLM)
        _choose("understanding", self.understanding, ("clip", "vq"))
        _choose("vq_condition", self.vq_condition, ("half", "blur8", "full"))
        if self.resolution % self.vq.down_sampling:
            raise ValueError(
                f"network.resolution {self.resolution} is not a multiple of the tokenizer's "
                f"down-sampling {self.vq.down_sampling}; change one of them"
            )
        if not 0 <= self.endoftext < self.llm_vocab_size:
            raise ValueError(
                f"network.endoftext {self.endoftext} is no text id; "
                f"give one of 0..{self.llm_vocab_size - 1}"
            )
        self._check_understanding()

    def _check_understanding(self) -> None:
        if self.understanding == "vq":
            if self.clip_vision is not None or self.projector:
                raise ValueError(
                    "network.clip_vision and network.projector belong to understanding 'clip'; "
                    "leave them out for 'vq'"
                )
            return
        if self.clip_vision is None:
            raise ValueError("network.clip_vision is missing; understanding 'clip' needs a tower")
        _refuse_unknown("network.clip_vision", self.clip_vision, CLIP_LARGE_336)
        _positive("network.clip_vision", self.clip_vision, ("image_size", "patch_size"))
        ends = (self.clip_vision.get("hidden_size"), self.llm.get("hidden_size"))
        if len(self.projector) < 2 or (self.projector[0], self.projector[-1]) != ends:
            raise ValueError(
                f"network.projector {list(self.projector)} must lead from the CLIP width to the "
                f"language model's: [{ends[0]}, ..., {ends[1]}]"
            )

    # ---- derived sizes --------------------------------------------------------------------------
    @property
    def codebook_size(self) -> int:
        """Number of image codes, 2 to the tokenizer's channels."""
        return self.vq.codebook_size

    @property
    def grid(self) -> int:
        """Image codes per side."""
        return self.resolution // self.vq.down_sampling

    @property
    def num_vq_tokens(self) -> int:
        """N: image codes per drawn image."""
        return self.grid**2

    @property
    def clip_tokens(self) -> int:
        """CLIP patch features per image (0 for the VQ variant)."""
        if self.clip_vision is None:
            return 0
        return (self.clip_vision["image_size"] // self.clip_vision["patch_size"]) ** 2

    @property
    def ids(self) -> SpecialIds:
        """Special token ids of this vocabulary."""
        return SpecialIds.of(self.llm_vocab_size, self.codebook_size, self.endoftext)

    @property
    def vocab_size(self) -> int:
        """V: text, added tokens, codes and MASK."""
        return self.ids.mask + 1

    # ---- in and out -----------------------------------------------------------------------------
    @classmethod
    def released(cls, understanding: Literal["clip", "vq"], resolution: int = 256) -> ShowoConfig:
        """The released model of this variant (showo.md 1): show-o[-w-clip-vit][-512x512]."""
        if understanding == "vq":
            return cls(resolution=resolution)
        return cls(
            resolution=resolution,
            understanding="clip",
            clip_vision=dict(CLIP_LARGE_336),
            projector=(
                CLIP_LARGE_336["hidden_size"],
                PHI_1_5["hidden_size"],
                PHI_1_5["hidden_size"],
            ),
        )

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> ShowoConfig:
        """Build from plain data (`network` in reca_model.json); ValueError names what is wrong."""
        known = {f.name for f in fields(cls)}
        _refuse_unknown("network", described, known)
        values = dict(described)
        if "vq" in values:
            values["vq"] = MagvitConfig.from_dict(values["vq"])
        if "projector" in values:
            values["projector"] = tuple(values["projector"] or ())
        for name in ("llm", "clip_vision"):
            if values.get(name) is not None:
                values[name] = dict(values[name])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back to an equal config (json-able)."""
        described = asdict(self)
        described["vq"] = self.vq.to_dict()
        described["projector"] = list(self.projector)
        return described

    @classmethod
    def from_golden(cls, config: Mapping[str, Any], **options: Any) -> ShowoConfig:
        """Read the `config` of a golden case; `options` are further fields (e.g. `max_text`).

        ValueError where the case states a size or an id that our rules would not give: the golden
        data decides that a rule is wrong.
        """
        llm = dict(config["llm"])
        stated = {"vocab_size": llm.pop("vocab_size")}
        for name, value in _PHI_FIXED.items():
            if llm.pop(name, value) != value:
                raise ValueError(f"llm.{name} must be {value!r} for Show-o")
        ours = cls.from_dict(
            {
                "llm": llm,
                "vq": config["vq"],
                "resolution": config["resolution"],
                "llm_vocab_size": config["llm_vocab_size"],
                "endoftext": config["ids"]["eos"],
                "understanding": "clip" if "mm_projector" in config else "vq",
                "clip_vision": config.get("clip_vision"),
                "projector": config.get("mm_projector", ()),
                **options,
            }
        )
        stated |= {name: config[name] for name in ("num_vq_tokens", "codebook_size", "ids")}
        derived = {name: getattr(ours, name) for name in stated} | {"ids": asdict(ours.ids)}
        if derived != stated:
            raise ValueError(f"the case states {stated}, but Show-o's rules give {derived}")
        return ours


class Showo(nn.Module):
    """Show-o's trainable network under its released names: `showo.*`, for CLIP `mm_projector.*`."""

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        self.config = config
        self.showo = PhiForCausalLM(
            PhiConfig(
                vocab_size=config.vocab_size,
                qk_layernorm=True,  # the released weights need it; phi-1_5's own config says false
                tie_word_embeddings=False,
                use_cache=False,
                **config.llm,
            )
        )
        self.showo.set_attn_implementation(attention.NAME)
        # transformers writes gelu_new out in eight element-wise operations; torch has the same function in one
        if self.showo.config.hidden_act == "gelu_new":
            for layer in self.showo.model.layers:
                layer.mlp.activation_fn = nn.GELU(approximate="tanh")
        if config.understanding == "clip":
            self.mm_projector = _projector(config.projector)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings: ids [B, L] -> [B, L, D]."""
        return self.showo.model.embed_tokens(ids)

    def project(self, clip_features: Tensor) -> Tensor:
        """Project CLIP patch features [B, P, Dclip] into the embedding space, [B, P, D]."""
        return self.mm_projector(clip_features)

    def hidden(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        allowed: Tensor | None = None,
        blocks: BlockLayout | None = None,
        implementation: Implementation = "auto",
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """Hidden states [B, L, D] after the final LayerNorm, of ids [B, L] or embeddings [B, L, D].

        `allowed[b, q, k]` (bool, [B, L, K] or [B, 1, L, K]) says that query q may attend to key k;
        K = L, plus the length of `past_key_values` where a cache is given (extended in place).
        Without a cache the mask may be given as `blocks` instead, per token, and then
        `reca_kernels.block_attention` runs, by the named implementation.
        `position_ids` [B, L] default to 0..L-1 behind the cache: pads take positions too
        (showo.md 1.1). A row that may attend to nothing gives finite junk.
        """
        if (allowed is None) == (blocks is None):
            raise ValueError("Showo.hidden needs the mask once: as allowed or as blocks")
        dtype = (inputs_embeds if inputs_embeds is not None else self.showo.lm_head.weight).dtype
        output = self.showo.model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=None if allowed is None else additive_mask(allowed, dtype),
            block_layout=blocks,
            block_implementation=implementation,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
        )
        return output.last_hidden_state

    def head(self, hidden: Tensor, vocab: slice | None = None) -> Tensor:
        """Logits of hidden states [..., D] over the vocabulary or a slice of it (`ids.codes`)."""
        lm_head = self.showo.lm_head
        if vocab is None:
            return lm_head(hidden)
        return F.linear(hidden, lm_head.weight[vocab], lm_head.bias[vocab])


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask [B, L, K] or [B, 1, L, K] as an additive one [B, 1, L, K], 0 where allowed.

    transformers hands a 4-D mask to attention untouched.
    """
    if allowed.dtype != torch.bool or allowed.dim() not in (3, 4):
        raise ValueError(
            "allowed must be bool [B, L, K] or [B, 1, L, K], "
            f"not {allowed.dtype} {list(allowed.shape)}"
        )
    allowed = allowed.unsqueeze(1) if allowed.dim() == 3 else allowed
    blocked = max(_BLOCKED, torch.finfo(dtype).min)  # float16 cannot hold the official value
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, blocked
    )


def clip_tower(config: ShowoConfig) -> CLIPVisionModel:
    """The (untrained) CLIP vision tower that a CLIP-variant config describes."""
    if config.clip_vision is None:
        raise ValueError("this Show-o has understanding 'vq': it has no CLIP tower")
    return CLIPVisionModel(CLIPVisionConfig(**config.clip_vision))


def clip_features(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """Penultimate layer of pixels [B, 3, S, S], no class token: [B, P, Dclip] (showo.md 1.2)."""
    return tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]


def _projector(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with exact GELUs between them; two of them give the released names 0 and 2."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _refuse_unknown(
    where: str, given: Mapping[str, Any], known: Mapping[str, Any] | set[str]
) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{where} is {given!r}; it must be a section with {', '.join(sorted(known))}"
        )
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )


def _positive(where: str, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        value = given.get(name, 1)
        if type(value) is not int or value < 1:
            raise ValueError(f"{where}.{name} is {value!r}; it must be a whole number above 0")


def _choose(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"network.{name} is {value!r}; choose one of: {', '.join(allowed)}")
