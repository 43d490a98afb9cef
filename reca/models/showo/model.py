"""Show-o behind the contract of `reca.models.contract`: layouts, network, sampler and frozen
encoders put together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from reca_kernels import linear_cross_entropy
from torch import Tensor

from reca.core import artifacts
from reca.core.finite import demand
from reca.models.contract import (
    DecayGroups,
    Features,
    Loss,
    MemoryProfile,
    Sampling,
    UnifiedModel,
    Use,
    warn_truncated,
)
from reca.models.showo import layout as layouts
from reca.models.showo import sampler as sampling_rules
from reca.models.showo import weights
from reca.models.showo.batch import Condition, Conversation, MaskNoise
from reca.models.showo.encoders import FrozenEncoders
from reca.models.showo.layout import IGNORE, Layout
from reca.models.showo.network import Showo, ShowoConfig
from reca.models.showo.options import ShowoOptions, parse
from reca.models.showo.text import TextFrontEnd, check_vocabulary, load_tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerFast

DESCRIPTION = "reca_model.json"
FORMAT = 1
_log = logging.getLogger(__name__)
_TRAINED = "network."  # the attribute that holds all that RecA trains


def build(network: Mapping[str, Any]) -> ShowoModel:
    """Build an untrained Show-o from its `network` section; its tokenizer comes with `load` or
    `set_tokenizer`.
    """
    return ShowoModel(*parse(network))


class ShowoModel(UnifiedModel):
    """Show-o: one transformer that reads by next tokens and draws by masked tokens."""

    family = "showo"

    def __init__(self, config: ShowoConfig, options: ShowoOptions | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = options or ShowoOptions()
        self.network = Showo(config)
        self.frozen = FrozenEncoders(config, self.options.encode_batch)
        self._text: TextFrontEnd | None = None

    # ---- text -----------------------------------------------------------------------------------
    @property
    def text(self) -> TextFrontEnd:
        """The text front end; ValueError while the model has no tokenizer."""
        if self._text is None:
            raise ValueError(
                "this Show-o has no tokenizer yet; load a model folder, which has tokenizer.json"
            )
        return self._text

    def set_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Use this tokenizer; ValueError unless its ids are the network's."""
        check_vocabulary(tokenizer, self.config.ids, "tokenizer")
        self._text = TextFrontEnd(tokenizer, self.config.ids, self.config.understanding)

    # ---- frozen parts ----------------------------------------------------------------------------
    def encode(self, images: Sequence[Image], use: Use) -> Features:
        """Target codes and understanding features (see `FrozenEncoders.encode`)."""
        return self.frozen.encode(images, use)

    def encoder_fingerprint(self, use: Use) -> str:
        """Hash of frozen weights and transform options behind `encode(..., use)`."""
        return self.frozen.fingerprint(use)

    # ---- drawing losses --------------------------------------------------------------------------
    def condition(self, texts: Sequence[str], features: Features | None = None) -> Condition:
        """Captions as they are; with features, reconstruction templates in their USER/ASSISTANT
        wording.

        ValueError names a template that the fixed head of the RecA layout cannot hold.
        """
        if features is None:
            return Condition([self.text.framed(text) for text in texts])
        prompts = [self.text.reconstruction_prompt(text) for text in texts]
        is_clip = self.config.understanding == "clip"
        room = self.config.head_text - 3 if is_clip else self._max_text_training
        for text, prompt in zip(texts, prompts, strict=True):
            if len(prompt) > room:
                raise ValueError(
                    f"prompt {text!r} has {len(prompt)} tokens, the RecA layout holds {room}"
                )
        return Condition(prompts, features["understanding"])

    def sample_noise(self, batch: int, generator: torch.Generator) -> MaskNoise:
        """Uniform draws in this order: t, slot order, text dropout (used by text-to-image only)."""
        shapes = [(batch,), (batch, self.config.num_vq_tokens), (batch,)]
        return MaskNoise(*(torch.rand(shape, generator=generator) for shape in shapes))

    def loss_count(self, noise: MaskNoise, with_image: bool) -> int:
        """Masked slots, and in text-to-image also soi and eoi of each row."""
        boundary = not with_image and self.options.t2i_boundary_tokens
        return noise.count + 2 * len(noise.t) * boundary

    def generation_loss(self, target: Features, condition: Condition, noise: MaskNoise) -> Loss:
        """Cross-entropy on the masked codes (showo.md 3.1, 3.6), over the full vocabulary unless
        `loss_vocab` is image.
        """
        layout = self.generation_layout(target["target"], condition, noise)
        is_reca = condition.understanding is not None
        hidden = self.hidden(layout, condition.understanding, self._embeddings_learn(is_reca))
        vocab = self.config.ids.codes if self.options.loss_vocab == "image" else None
        return self._token_loss(hidden, layout, vocab)

    def generation_layout(self, codes: Tensor, condition: Condition, noise: MaskNoise) -> Layout:
        """The training sequences of `generation_loss`: masked codes behind their condition."""
        masked = noise.masked
        wanted = codes.long().cpu() + self.config.ids.first_image
        image = wanted.masked_fill(masked, self.config.ids.mask)
        if condition.understanding is None:
            condition = self._with_dropped_texts(condition, noise)
        targets = wanted.masked_fill(~masked, IGNORE)
        layout = self._drawing_layout(condition, image, targets, self._max_text_training)
        return self._prepared(layout)

    def _with_dropped_texts(self, condition: Condition, noise: MaskNoise) -> Condition:
        dropped = (noise.text_dropout < self.options.text_dropout).tolist()
        empty = [self.config.ids.bos, self.config.ids.eos]
        return Condition(
            [empty if drop else text for text, drop in zip(condition.texts, dropped, strict=True)]
        )

    def _drawing_layout(
        self, condition: Condition, image: Tensor, targets: Tensor, max_text: int
    ) -> Layout:
        ids, texts, read = self.config.ids, condition.texts, condition.understanding
        if read is None:
            boundary = self.options.t2i_boundary_tokens
            return layouts.text_to_image(texts, image, targets, ids, max_text, boundary)
        if self.config.understanding == "clip":
            room = self.config.head_text
            return layouts.reconstruction_clip(texts, read.shape[1], image, targets, ids, room)
        codes = read.long().cpu() + ids.first_image
        return layouts.reconstruction_vq(texts, codes, image, targets, ids, max_text)

    def _embeddings_learn(self, is_reca: bool) -> bool:
        if not is_reca:
            return True
        if self.options.reca_embedding_grad is None:
            return self.config.understanding == "vq"
        return self.options.reca_embedding_grad

    # ---- reading losses --------------------------------------------------------------------------
    def conversation(
        self, turns: Sequence[Sequence[tuple[str, str]]], with_image: bool = True
    ) -> Conversation:
        """Tokenise (question, answer) turns with labels on the answers, cut to the layout's text
        block.
        """
        room = self._conversation_room(with_image)
        coded = [self.text.conversation(one) for one in turns]
        return Conversation(
            [ids[:room] for ids, _ in coded], [labels[:room] for _, labels in coded], room
        )

    def answer_loss(self, conversation: Conversation, features: Features | None) -> Loss:
        """Next-token cross-entropy on answers (showo.md 3.2, 3.3); without features the text stands
        alone.
        """
        read = None if features is None else features["understanding"]
        layout = self.conversation_layout(conversation, read)
        return self._token_loss(self.hidden(layout, read), layout)

    def conversation_layout(
        self, conversation: Conversation, understanding: Tensor | None
    ) -> Layout:
        """The training sequences of `answer_loss`."""
        prefix = self._reading_prefix(len(conversation.texts), understanding)
        return self._prepared(
            layouts.conversation(
                prefix,
                conversation.texts,
                conversation.labels,
                conversation.length,
                self.config.ids,
            )
        )

    def _reading_prefix(self, batch: int, understanding: Tensor | None) -> list[layouts.Piece]:
        ids = self.config.ids
        if understanding is None:
            return layouts.text_prefix(batch, ids)
        if self.config.understanding == "clip":
            return layouts.clip_prefix(batch, understanding.shape[1], self._system(), ids)
        return layouts.vq_prefix(understanding.long().cpu() + ids.first_image, ids)

    def _conversation_room(self, with_image: bool) -> int:
        """Length of the text block: with CLIP, what makes the sequence as long as a text-to-image
        one (showo.md 3.2).
        """
        room = self._max_text_training
        if with_image and self.config.understanding == "clip":
            room -= self.config.clip_tokens - self.config.num_vq_tokens + len(self._system())
        if room < 1:
            raise ValueError(
                f"max_text {self._max_text_training} leaves no room for a conversation beside "
                f"{self.config.clip_tokens} CLIP tokens; raise options.max_text_training (recipe: 576)"
            )
        return room

    def _system(self) -> list[int]:
        prompt = self.config.system_prompt
        return self.text.plain([prompt])[0] if prompt else []

    # ---- the forward pass that all losses share --------------------------------------------------
    def hidden(
        self, layout: Layout, understanding: Tensor | None, embeddings_learn: bool = True
    ) -> Tensor:
        """Final hidden states [B, L, D] of a layout whose CLIP slots hold `understanding`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and embeddings_learn):
            embeddings = self.embeddings(layout, understanding)
        return self.network.hidden(
            inputs_embeds=embeddings,
            blocks=layout.blocks(),
            implementation=self.options.implementation,
            position_ids=layout.positions,
        )

    def embeddings(self, layout: Layout, understanding: Tensor | None) -> Tensor:
        """Input embeddings [B, L, D]: tokens, and projected CLIP features in the slots kept for
        them.
        """
        tokens = self.network.embed(layout.ids.clamp(min=0))
        if understanding is None or self.config.understanding != "clip":
            return tokens
        start = int((layout.ids[0] == IGNORE).nonzero()[0])
        clip = self.network.project(understanding.to(tokens.device, tokens.dtype))
        stop = start + clip.shape[1]
        return torch.cat([tokens[:, :start], clip, tokens[:, stop:]], dim=1)

    def _token_loss(self, hidden: Tensor, layout: Layout, vocab: slice | None = None) -> Loss:
        """Sum of cross-entropies (fp32) at the positions with targets; logits are never stored."""
        head = self.network.showo.lm_head
        total = linear_cross_entropy(
            hidden,
            head.weight,
            layout.targets,
            head.bias,
            vocab=None if vocab is None else (vocab.start, vocab.stop),
            ignore_index=IGNORE,
            reduction="sum",
            implementation=self.options.implementation,
        )
        return Loss(total, layout.count)

    def _prepared(self, layout: Layout) -> Layout:
        layout = layout.trimmed() if self.options.trim else layout
        return layout.to(self.network.showo.lm_head.weight.device)

    @property
    def _max_text_training(self) -> int:
        return self.options.max_text_training or self.config.max_text

    # ---- inference -------------------------------------------------------------------------------
    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        unconditional: Condition | None,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> list[Image]:
        """Draw one picture per row (showo.md 4.2); options in `sampling.options` are those of
        `SamplerOptions`.
        """
        return self.frozen.decode(self.draw_codes(condition, unconditional, sampling, generators))

    def default_sampling(self) -> Sampling:
        """As the authors draw (showo.md 4.2); with fewer codes than they take steps, as laptop models draw best."""
        steps = 50
        if self.config.num_vq_tokens < steps:
            return Sampling(guidance=2.0, steps=12)
        return Sampling(guidance=5.0, steps=steps)

    def check_sampling(self, sampling: Sampling) -> None:
        """ValueError on an option that `SamplerOptions` does not know or a value that it refuses."""
        sampling_rules.SamplerOptions.of(sampling)

    @torch.no_grad()
    def draw_codes(
        self,
        condition: Condition,
        unconditional: Condition | None,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """The codes [B, N] of `generate`'s pictures."""
        options = sampling_rules.SamplerOptions.of(sampling)
        if len(generators) != len(condition):
            raise ValueError(
                f"{len(condition)} pictures need as many generators, got {len(generators)}"
            )
        if options.guidance > 0 and unconditional is None:
            raise ValueError("sampling.guidance > 0 needs an unconditional condition")
        unconditional = unconditional if options.guidance > 0 else None
        noise = sampling_rules.RowNoise(generators, self.config.codebook_size)
        device = self.network.showo.lm_head.weight.device
        shape = (len(condition), self.config.num_vq_tokens)
        masked = torch.ones(shape, dtype=torch.bool, device=device)
        logits = self.code_logits(condition, unconditional)
        *_, last = sampling_rules.sample(logits, masked, options, noise)
        demand(last.finite, "logits of the image codes")
        return last.codes

    def code_logits(
        self, condition: Condition, unconditional: Condition | None
    ) -> sampling_rules.Logits:
        """The network as the sampler calls it; both conditions in one pass where their layouts are
        alike.
        """
        if unconditional is None:
            single = self._one_pass(condition)
            return lambda codes, masked: (single(codes, masked), None)
        if condition.understanding is None and unconditional.understanding is None:
            both = self._one_pass(Condition([*condition.texts, *unconditional.texts]))

            def joint(codes: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
                conditional, other = both(codes.repeat(2, 1), masked.repeat(2, 1)).chunk(2)
                return conditional, other

            return joint
        first, second = self._one_pass(condition), self._one_pass(unconditional)
        return lambda codes, masked: (first(codes, masked), second(codes, masked))

    def _one_pass(self, condition: Condition) -> sampling_rules.CodeLogits:
        room, longest = self.config.max_text, max(len(text) for text in condition.texts)
        if condition.understanding is None and longest > room:
            _log.warning("a prompt of %d tokens is cut to the %d that fit", longest, room)
        slots = self.config.num_vq_tokens
        image = torch.full((len(condition), slots), self.config.ids.mask)
        targets = torch.full_like(image, IGNORE)
        layout = self._drawing_layout(condition, image, targets, self.config.max_text)
        layout = self._prepared(layout)
        embeddings = self.embeddings(layout, condition.understanding)
        return sampling_rules.CodeLogits(self.network, layout, embeddings, slots)

    def unconditional(self, batch: int) -> Condition:
        """The empty prompt, `[bos][eos]`, as in the training with dropped texts."""
        return Condition([[self.config.ids.bos, self.config.ids.eos]] * batch)

    @torch.no_grad()
    def answer(
        self, questions: Sequence[str], features: Features | None, max_new_tokens: int = 32
    ) -> list[str]:
        """Greedy answers, one per row, up to the first eos."""
        with_image = features is not None
        texts = [self.text.question(question, with_image) for question in questions]
        read = features["understanding"] if features is not None else None
        layout = self._prepared(self.question_layout(texts, read))
        steps = sampling_rules.greedy(
            self.network, layout, self.embeddings(layout, read), max_new_tokens
        )
        tokens = [token for _, token in steps]
        rows = torch.stack(tokens, dim=1).tolist() if tokens else [[] for _ in questions]
        warn_truncated(rows, self.config.ids.eos)
        return [self.text.decoded(row) for row in rows]

    def question_layout(
        self, texts: Sequence[Sequence[int]], understanding: Tensor | None
    ) -> Layout:
        """The sequences in front of an answer."""
        prefix = self._reading_prefix(len(texts), understanding)
        return layouts.question(prefix, texts, self.config.ids)

    # ---- parameters and weights ------------------------------------------------------------------
    def trainable_parameters(self) -> list[str]:
        """The complete language model and the projector; never the tokenizer, never CLIP."""
        return [name for name, _ in self.named_parameters() if name.startswith(_TRAINED)]

    def decay_groups(self) -> DecayGroups:
        """Only biases are exempt: the published name patterns match none of Show-o's norms (showo.md
        5).
        """
        names = self.trainable_parameters()
        return DecayGroups(
            decay=tuple(name for name in names if "bias" not in name),
            no_decay=tuple(name for name in names if "bias" in name),
        )

    def memory_profile(self) -> MemoryProfile:
        """One RecA sequence: head, understanding tokens, text and image codes (showo.md 3.2)."""
        llm, is_clip = self.config.llm, self.config.understanding == "clip"
        seen = self.config.clip_tokens if is_clip else self.config.num_vq_tokens // 4
        return MemoryProfile(
            tokens=seen + self.config.head_text + 3 + self.config.num_vq_tokens,
            layers=llm["num_hidden_layers"],
            width=llm["hidden_size"],
            inner=llm["intermediate_size"],
        )

    def official_state(self) -> dict[str, Tensor]:
        """The Show-o checkpoint under its released names: `showo.*` and `mm_projector.*`."""
        return weights.official_state(self.network)

    def load(self, path: Path) -> None:
        """Load a model folder, or only the network from an official checkpoint file or folder (a
        RecA result, say).
        """
        path = Path(path)
        if not (path / DESCRIPTION).is_file():
            weights.load_official(self.network, path)
            return
        for name, module in self._files().items():
            weights.load_official(module, path / name)
        self.set_tokenizer(load_tokenizer(path, self.config.ids))

    def load_parts(
        self,
        parts: Mapping[str, Path],
        *,
        sha256: Mapping[str, str] | None = None,
        allow_unpinned: bool = False,
    ) -> None:
        """Load official files, each from where it lies: `weights` (the network), `image_tokenizer`,
        `vision` (CLIP variant) and `tokenizer`.

        All that the variant has must be given, as file or folder; a pickle is opened only under its
        `sha256`, unless `allow_unpinned`.
        """
        modules = {"weights": self.network, "image_tokenizer": self.frozen.magvit}
        if self.frozen.clip is not None:
            modules["vision"] = self.frozen.clip
        if set(parts) != {*modules, "tokenizer"}:
            wanted = ", ".join([*modules, "tokenizer"])
            raise ValueError(f"Show-o is made of {wanted}; given: {', '.join(parts) or 'nothing'}")
        for role, module in modules.items():
            pin = (sha256 or {}).get(role)
            weights.load_official(module, parts[role], sha256=pin, allow_unpinned=allow_unpinned)
        self.set_tokenizer(load_tokenizer(Path(parts["tokenizer"]), self.config.ids))

    def save(self, directory: Path) -> None:
        """Write network, tokenizer and CLIP tower under official names, the text tokenizer, and the
        description last.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, module in self._files().items():
            weights.save_official(module, directory / name)
        self.text.tokenizer.save_pretrained(str(directory))
        network = self.config.to_dict() | {"options": asdict(self.options)}
        described = {"family": self.family, "network": network, "format": FORMAT}
        artifacts.write_json(directory / DESCRIPTION, described)

    def _files(self) -> dict[str, torch.nn.Module]:
        files = {"model.safetensors": self.network, "magvit.safetensors": self.frozen.magvit}
        if self.frozen.clip is not None:
            files["clip.safetensors"] = self.frozen.clip
        return files
