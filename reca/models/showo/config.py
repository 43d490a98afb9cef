"""The `network` section of a Show-o: sizes, special tokens and training options.

Source: docs/reference/showo.md 1, 3 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from reca_kernels import Implementation

from reca.core.structure import Count, Share, problem
from reca.models.common import options as common
from reca.models.common.layers import check_activation
from reca.models.showo.magvit import MagvitConfig

VICUNA_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class LanguageConfig:
    """Numbers of the language model, named as in transformers' PhiConfig; the defaults are Phi-1.5's."""

    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    hidden_act: str = "gelu_new"
    layer_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.5

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """Values of a head that rotary positions turn; the rest has no position."""
        return int(self.head_dim * self.partial_rotary_factor)


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of the vision tower, named as in transformers' CLIPVisionConfig and with its defaults (CLIP ViT-B/32)."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"


PHI_1_5: dict[str, Any] = asdict(LanguageConfig())
CLIP_LARGE_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
_ADDED_TEXT_TOKENS = 10  # [PAD] and nine <|...|> tokens are between the text ids and the codes


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens after the text ids: [PAD], <|...|> tokens, image codes, MASK."""

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
        """Lay out the ids after the text ids; `endoftext` is both bos and eos (showo.md 1.4)."""
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

    `llm` and `clip_vision` hold fields of LanguageConfig and TowerConfig. `max_text` is M of
    showo.md 3 (inference 128, RecA training 576 for CLIP and 381 for VQ), `head_text` the fixed
    text head of the CLIP RecA layout. `clip_condition_normalise=False` and `vq_condition="half"`
    are the published recipe.
    """

    llm: dict[str, Any] = field(default_factory=lambda: dict(PHI_1_5))
    vq: MagvitConfig = field(default_factory=MagvitConfig)
    resolution: Count = 256
    llm_vocab_size: Count = 50295
    endoftext: int = 50256
    understanding: Literal["clip", "vq"] = "vq"
    clip_vision: dict[str, Any] | None = None
    projector: tuple[int, ...] = ()
    max_text: Count = 128
    head_text: Count = 128
    system_prompt: str = VICUNA_SYSTEM_PROMPT
    clip_condition_normalise: bool = False
    vq_condition: Literal["half", "quarter", "blur8", "full"] = "half"

    def __post_init__(self) -> None:
        common.check_numbers("network.llm", self.llm, PHI_1_5)
        common.check_attention("network.llm", vars(self.language))
        if self.language.rotary_dim % 2:
            raise problem(
                "network.llm.partial_rotary_factor",
                self.language.partial_rotary_factor,
                f"leaves {self.language.rotary_dim} of {self.language.head_dim} values per head to rotary positions, "
                "which turn pairs; change it or num_attention_heads",
            )
        check_activation("network.llm.hidden_act", self.language.hidden_act)
        if self.resolution % self.vq.down_sampling:
            raise ValueError(
                f"network.resolution {self.resolution} is not a multiple of the tokenizer's "
                f"down-sampling {self.vq.down_sampling}; change one of them"
            )
        if not 0 <= self.endoftext < self.llm_vocab_size:
            raise ValueError(
                f"network.endoftext {self.endoftext} is not a text id; "
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
        common.check_numbers("network.clip_vision", self.clip_vision, CLIP_LARGE_336)
        common.check_attention("network.clip_vision", vars(self.tower))
        check_activation("network.clip_vision.hidden_act", self.tower.hidden_act)
        ends = (self.clip_vision.get("hidden_size"), self.llm.get("hidden_size"))
        if len(self.projector) < 2 or (self.projector[0], self.projector[-1]) != ends:
            raise ValueError(
                f"network.projector {list(self.projector)} must map the CLIP width to the "
                f"language model's: [{ends[0]}, ..., {ends[1]}]"
            )

    # ---- derived sizes --------------------------------------------------------------------------
    @property
    def language(self) -> LanguageConfig:
        """The language model's numbers: those of Phi-1.5 where not given, and a key/value head for each head."""
        heads = self.llm.get("num_attention_heads", PHI_1_5["num_attention_heads"])
        return LanguageConfig(**{"num_key_value_heads": heads, **self.llm})

    @property
    def tower(self) -> TowerConfig:
        """The vision tower's sizes; ValueError for the VQ variant, which has none."""
        if self.clip_vision is None:
            raise ValueError("this Show-o has understanding 'vq': it has no CLIP tower")
        return TowerConfig(**self.clip_vision)

    @property
    def codebook_size(self) -> int:
        """Number of image codes, 2 to the tokenizer's channels."""
        return self.vq.codebook_size

    @property
    def grid(self) -> int:
        """Number of image codes per side."""
        return self.resolution // self.vq.down_sampling

    @property
    def num_vq_tokens(self) -> int:
        """Number of image codes per generated image, N."""
        return self.grid**2

    @property
    def clip_tokens(self) -> int:
        """Number of CLIP patch features per image (0 for the VQ variant)."""
        if self.clip_vision is None:
            return 0
        return (self.clip_vision["image_size"] // self.clip_vision["patch_size"]) ** 2

    @property
    def ids(self) -> SpecialIds:
        """Special token ids of this vocabulary."""
        return SpecialIds.of(self.llm_vocab_size, self.codebook_size, self.endoftext)

    @property
    def vocab_size(self) -> int:
        """Vocabulary size, V: text, added tokens, codes and MASK."""
        return self.ids.mask + 1


@dataclass(frozen=True)
class ShowoOptions:
    """Training options; the defaults are the published recipe.

    `max_text_training`: M of the training layouts (CLIP recipe 576, VQ 381); None means the
    network's `max_text`. `text_dropout`: share of text-to-image samples trained without their text.
    `t2i_boundary_tokens`: soi and eoi have a text-to-image loss. `loss_vocab` `image` restricts
    generation losses to the codebook. `reca_embedding_grad`: RecA trains the embeddings of its
    input (None: as published, only in the VQ variant). `trim`: drop columns that are padding in
    every row, which affects only the cost. `encode_batch`: images per pass of the frozen encoders.
    `implementation` of the losses and the attention: see `reca_kernels`.
    """

    max_text_training: Count | None = None
    text_dropout: Share = 0.1
    t2i_boundary_tokens: bool = True
    loss_vocab: Literal["full", "image"] = "full"
    reca_embedding_grad: bool | None = None
    trim: bool = True
    encode_batch: Count = 32
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        if self.loss_vocab == "image" and self.t2i_boundary_tokens:
            raise ValueError(
                "options.loss_vocab 'image' has no soi and eoi; set t2i_boundary_tokens false"
            )


def parse(network: Mapping[str, Any]) -> tuple[ShowoConfig, ShowoOptions]:
    """Parse a `network` section: the keys of `ShowoConfig`, and `options` with those of `ShowoOptions`."""
    return common.parse(network, ShowoConfig, ShowoOptions)
