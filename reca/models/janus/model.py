"""Janus-Pro's implementation of `reca.models.contract`: every operation forwards to another module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reca.models.common.family import FamilyModel, WeightFile
from reca.models.common.memory import language_profile
from reca.models.contract import DecayGroups, Features, Loss, MemoryProfile, Sampling, Use
from reca.models.janus import weights
from reca.models.janus.batch import Condition, Conversation, DropoutNoise
from reca.models.janus.config import LLAMA_1B, JanusConfig, JanusOptions, parse
from reca.models.janus.encoders import FrozenEncoders
from reca.models.janus.network import Janus
from reca.models.janus.text import TextFrontEnd

if TYPE_CHECKING:
    from PIL.Image import Image

_LEAST_CODES = 50  # of an image for the published guidance; the released models have 576
_TEXT = 40  # typical number of tokens of a reconstruction prompt, for estimates


def build(network: Mapping[str, Any]) -> JanusModel:
    """Build an untrained Janus-Pro from its `network` section; its tokenizer comes with `load` or `set_tokenizer`."""
    return JanusModel(*parse(network))


class JanusModel(FamilyModel):
    """Janus-Pro: one Llama that reads images through SigLIP and generates them as VQ codes, token by token."""

    family = "janus"
    title = "Janus-Pro"
    front_end = TextFrontEnd
    unread: Mapping[str, Tensor]
    """Tensors of an official checkpoint that the model does not use; saved again (`weights.JanusNaming`)."""

    def __init__(self, config: JanusConfig, options: JanusOptions | None = None) -> None:
        options = options or JanusOptions()
        # Before the encoders: the order of construction decides which random weights a seed gives.
        network = Janus(config)
        super().__init__(config, options, network, FrozenEncoders(config, options.encode_batch))
        self.unread = {}

    # ---- frozen parts ----------------------------------------------------------------------------
    def encode(self, images: Sequence[Image], use: Use) -> Features:
        """Target codes [B, N] and SigLIP features [B, P, W]; see `FrozenEncoders.encode`."""
        return self.frozen.encode(images, use)

    def encoder_fingerprint(self, use: Use) -> str:
        """Hash of the frozen weights and sizes that `encode(..., use)` depends on."""
        return self.frozen.fingerprint(use)

    # ---- losses ----------------------------------------------------------------------------------
    def condition(self, texts: Sequence[str], features: Features | None = None) -> Condition:
        """Text-to-image prompts of captions or, with features, reconstruction prompts that contain the image."""
        pad = self.text.special.pad
        if features is None:
            return Condition([self.text.caption(text) for text in texts], pad)
        rows = [self.text.reconstruction(text) for text in texts]
        return Condition(rows, pad, features["understanding"])

    def unconditional(self, batch: int) -> Condition:
        """BOS and begin-of-image for each row; the sampler pads between them to the condition's length (janus.md d)."""
        return Condition([self.text.unconditional()] * batch, self.text.special.pad)

    def sample_noise(self, batch: int, generator: torch.Generator) -> DropoutNoise:
        """One uniform number per row, which decides whether its condition is dropped."""
        return DropoutNoise(torch.rand(batch, generator=generator), self.config.num_codes)

    def generation_loss(self, target: Features, condition: Condition, noise: DropoutNoise) -> Loss:
        """See `loss.generation_loss`."""
        from reca.models.janus import loss

        return loss.generation_loss(self.network, self.options, target["target"], condition, noise)

    def conversation(
        self, turns: Sequence[Sequence[tuple[str, str]]], with_image: bool = True
    ) -> Conversation:
        """Tokenise (question, answer) turns with labels on the answers, truncated to `max_text` tokens."""
        room = self.options.max_text
        coded = [self.text.conversation(one, with_image) for one in turns]
        return Conversation(
            [ids[:room] for ids, _ in coded], [labels[:room] for _, labels in coded]
        )

    def answer_loss(self, conversation: Conversation, features: Features | None) -> Loss:
        """See `loss.answer_loss`."""
        from reca.models.janus import loss

        read = None if features is None else features["understanding"]
        return loss.answer_loss(self.network, self.options, conversation, read)

    # ---- inference -------------------------------------------------------------------------------
    def generate(
        self,
        condition: Condition,
        unconditional: Condition | None,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> list[Image]:
        """One image per row, from text or from understanding features; options: `sampler.SamplerOptions`."""
        from reca.models.janus import sampler

        return self.frozen.decode(
            sampler.sample_codes(self.network, condition, unconditional, sampling, generators)
        )

    def default_sampling(self) -> Sampling:
        """The published settings (janus.md d), one step per code; a laptop model generates best without guidance."""
        codes = self.config.num_codes
        return Sampling(guidance=5.0 if codes >= _LEAST_CODES else 1.0, steps=codes)

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise ValueError for an unknown option or invalid value of `SamplerOptions`."""
        from reca.models.janus.sampler import SamplerOptions

        SamplerOptions.of(sampling)

    @torch.no_grad()
    def answer(
        self, questions: Sequence[str], features: Features | None, max_new_tokens: int = 32
    ) -> list[str]:
        """Greedy answers, one per row, up to the first EOS."""
        from reca.models.common.decoding import answers
        from reca.models.janus import sampler

        texts = [self.text.question(question, features is not None) for question in questions]
        read = None if features is None else features["understanding"]
        steps = sampler.answer(self.network, texts, read, self.text.end, max_new_tokens)
        return answers(steps, self.text, len(questions))

    # ---- parameters and weights ------------------------------------------------------------------
    def trainable_parameters(self) -> list[str]:
        """The whole network, without the aligner if `train_aligner` is false."""
        left = () if self.options.train_aligner else ("network.aligner.",)
        return [name for name in super().trainable_parameters() if not name.startswith(left)]

    def decay_groups(self) -> DecayGroups:
        """Weight decay for matrices only; the recipe sets it to 0 (janus.md e)."""
        by_name = dict(self.named_parameters())
        names = self.trainable_parameters()
        return DecayGroups(
            decay=tuple(name for name in names if by_name[name].dim() > 1),
            no_decay=tuple(name for name in names if by_name[name].dim() <= 1),
        )

    def memory_profile(self) -> MemoryProfile:
        """Sizes of one RecA sequence: input image, prompt and codes (janus.md e)."""
        config = self.config
        tokens = config.image_length + _TEXT + config.num_codes
        return language_profile(LLAMA_1B | config.llm, tokens)

    def weight_files(self) -> list[WeightFile]:
        """One file with all weights, as released."""
        naming = weights.NAMING[self.options.checkpoint_layout]
        return [WeightFile("weights", "model.safetensors", self, naming)]
