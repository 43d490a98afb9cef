"""Show-o's implementation of `reca.models.contract`: every operation forwards to another module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from reca.models.common.family import FamilyModel, WeightFile
from reca.models.common.memory import language_profile
from reca.models.contract import DecayGroups, Features, Loss, MemoryProfile, Sampling, Use
from reca.models.showo import weights
from reca.models.showo.batch import Condition, Conversation, MaskNoise
from reca.models.showo.config import ShowoConfig, ShowoOptions, parse
from reca.models.showo.encoders import FrozenEncoders
from reca.models.showo.layout import conversation_room, max_text_training
from reca.models.showo.network import Showo
from reca.models.showo.text import TextFrontEnd

if TYPE_CHECKING:
    from PIL.Image import Image


def build(network: Mapping[str, Any]) -> ShowoModel:
    """Build an untrained Show-o from its `network` section; its tokenizer comes with `load` or `set_tokenizer`."""
    return ShowoModel(*parse(network))


class ShowoModel(FamilyModel):
    """Show-o: one transformer that predicts text as next tokens and images as masked tokens."""

    family = "showo"
    title = "Show-o"
    neutral_guidance = 0.0  # (1 + s) c - s u
    front_end = TextFrontEnd

    def __init__(self, config: ShowoConfig, options: ShowoOptions | None = None) -> None:
        options = options or ShowoOptions()
        network = Showo(
            config
        )  # first: what a seed means depends on the order of random initialisation
        super().__init__(config, options, network, FrozenEncoders(config, options.encode_batch))

    # ---- frozen parts ----------------------------------------------------------------------------
    def encode(self, images: Sequence[Image], use: Use) -> Features:
        """Target codes and understanding features (see `FrozenEncoders.encode`)."""
        return self.frozen.encode(images, use)

    def encoder_fingerprint(self, use: Use) -> str:
        """Hash of the frozen weights and preprocessing options that `encode(..., use)` depends on."""
        return self.frozen.fingerprint(use)

    # ---- losses ----------------------------------------------------------------------------
    def condition(self, texts: Sequence[str], features: Features | None = None) -> Condition:
        """Captions unchanged; with features, reconstruction templates in USER/ASSISTANT format.

        ValueError names a template that does not fit into the fixed head of the RecA layout.
        """
        if features is None:
            return Condition([self.text.framed(text) for text in texts])
        prompts = [self.text.reconstruction_prompt(text) for text in texts]
        is_clip = self.config.understanding == "clip"
        room = (
            self.config.head_text - 3 if is_clip else max_text_training(self.config, self.options)
        )
        for text, prompt in zip(texts, prompts, strict=True):
            if len(prompt) > room:
                raise ValueError(
                    f"prompt {text!r} has {len(prompt)} tokens, the RecA layout has room for {room}"
                )
        return Condition(prompts, features["understanding"])

    def unconditional(self, batch: int) -> Condition:
        """The empty prompt, `[bos][eos]`, as in training with dropped text."""
        return Condition([[self.config.ids.bos, self.config.ids.eos]] * batch)

    def sample_noise(self, batch: int, generator: torch.Generator) -> MaskNoise:
        """Sample uniformly, in this order: t, slot order, text dropout (used by text-to-image only)."""
        shapes = [(batch,), (batch, self.config.num_vq_tokens), (batch,)]
        return MaskNoise(*(torch.rand(shape, generator=generator) for shape in shapes))

    def loss_count(self, noise: MaskNoise, with_image: bool) -> int:
        """Number of masked slots, and in text-to-image also soi and eoi of each row."""
        boundary = not with_image and self.options.t2i_boundary_tokens
        return noise.count + 2 * len(noise.t) * boundary

    def generation_loss(self, target: Features, condition: Condition, noise: MaskNoise) -> Loss:
        """See `loss.generation_loss`."""
        from reca.models.showo import loss

        return loss.generation_loss(self.network, self.options, target["target"], condition, noise)

    def conversation(
        self, turns: Sequence[Sequence[tuple[str, str]]], with_image: bool = True
    ) -> Conversation:
        """Tokenise (question, answer) turns with labels on the answers, truncated to the layout's text block."""
        system = self._system()
        room = conversation_room(self.config, self.options, system, with_image)
        coded = [self.text.conversation(one) for one in turns]
        return Conversation(
            [ids[:room] for ids, _ in coded],
            [labels[:room] for _, labels in coded],
            room,
            system,
        )

    def answer_loss(self, conversation: Conversation, features: Features | None) -> Loss:
        """See `loss.answer_loss`."""
        from reca.models.showo import loss

        read = None if features is None else features["understanding"]
        return loss.answer_loss(self.network, self.options, conversation, read)

    def _system(self) -> list[int]:
        prompt = self.config.system_prompt
        return self.text.ids([prompt])[0] if prompt else []

    # ---- inference ---------------------------------------------------------------------------
    def generate(
        self,
        condition: Condition,
        unconditional: Condition | None,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> list[Image]:
        """One image per row; options in `sampling.options` are those of `sampler.SamplerOptions`."""
        from reca.models.showo import sampler

        codes = sampler.sample_codes(
            self.network, self.options, condition, unconditional, sampling, generators
        )
        return self.frozen.decode(codes)

    def default_sampling(self) -> Sampling:
        """The authors' settings (showo.md 4.2); with fewer codes than their steps, the best for laptop models."""
        steps = 50
        if self.config.num_vq_tokens < steps:
            return Sampling(guidance=2.0, steps=12)
        return Sampling(guidance=5.0, steps=steps)

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise ValueError for an unknown option or invalid value of `SamplerOptions`."""
        from reca.models.showo.sampler import SamplerOptions

        SamplerOptions.of(sampling)

    @torch.no_grad()
    def answer(
        self, questions: Sequence[str], features: Features | None, max_new_tokens: int = 32
    ) -> list[str]:
        """Greedy answers, one per row, up to the first eos."""
        from reca.models.common.decoding import answers
        from reca.models.showo import sampler

        texts = [self.text.question(question, features is not None) for question in questions]
        read = None if features is None else features["understanding"]
        steps = sampler.answer(
            self.network, self.options, texts, read, self._system(), max_new_tokens
        )
        return answers(steps, self.text, len(questions))

    # ---- parameters and weights --------------------------------------------------------------
    def decay_groups(self) -> DecayGroups:
        """Only biases are exempt: the published name patterns match none of Show-o's norms (showo.md 5)."""
        names = self.trainable_parameters()
        return DecayGroups(
            decay=tuple(name for name in names if "bias" not in name),
            no_decay=tuple(name for name in names if "bias" in name),
        )

    def memory_profile(self) -> MemoryProfile:
        """One RecA sequence: head, understanding tokens, text and image codes (showo.md 3.2)."""
        llm, is_clip = self.config.llm, self.config.understanding == "clip"
        seen = self.config.clip_tokens if is_clip else self.config.num_vq_tokens // 4
        tokens = seen + self.config.head_text + 3 + self.config.num_vq_tokens
        return language_profile(llm, tokens)

    def weight_files(self) -> list[WeightFile]:
        """Network, image tokenizer and, in the CLIP variant, the vision tower."""
        magvit, clip = self.frozen.magvit, self.frozen.clip
        files = [
            WeightFile("weights", "model.safetensors", self.network, weights.NETWORK),
            WeightFile("image_tokenizer", "magvit.safetensors", magvit, weights.MAGVIT),
        ]
        if clip is not None:
            files.append(WeightFile("vision", "clip.safetensors", clip, weights.CLIP))
        return files
