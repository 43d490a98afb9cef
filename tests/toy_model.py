"""A toy unified model that also reads and draws: pictures come from pixels, text and noise alone."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from reca.data.dataset import Sample
from reca.models.contract import Sampling
from tests.align.toy import CODES, SEEN, TOKENS, Toy

CODE = "c" * 64


class DrawingToy(Toy):
    """`Toy` with frozen encoders over 4 x 4 pixels; `encoded` and `drawn` count the rows it made."""

    def __init__(self, seed: int = 0, transform: str = "plain") -> None:
        super().__init__(seed)
        self.transform = transform
        self.encoded = self.drawn = self.answered = 0
        self.batches: list[int] = []

    @torch.no_grad()
    def encode(self, images, use):
        self.encoded += len(images)
        pixels = torch.stack(
            [torch.from_numpy(np.array(i.resize((4, 4), Image.Resampling.BOX))) for i in images]
        ).float()  # (B, 4, 4, 3)
        pixels = 255 - pixels if self.transform == "negative" else pixels
        codes = (pixels.flatten(1)[:, :TOKENS] // (256 // CODES)).long()
        seen = torch.stack([self.encoder(row[-SEEN:] / 255) for row in pixels.flatten(1)])
        return {"target": codes, "understanding": seen if use == "draw" else -seen}

    def encoder_fingerprint(self, use):
        weights = b"".join(p.detach().numpy().tobytes() for p in self.encoder.parameters())
        return hashlib.sha256(weights + self.transform.encode() + use.encode()).hexdigest()

    def unconditional(self, batch):
        return torch.zeros(batch, self.words.out_features)

    def generate(self, condition, unconditional, sampling: Sampling, generators):
        assert (unconditional is not None) == (sampling.guidance > 0)
        self.drawn += len(condition)
        self.batches.append(len(condition))
        pictures = []
        for row, generator in zip(condition, generators, strict=True):
            noise = torch.rand(8, 8, 3, generator=generator)
            level = torch.sigmoid(row[:3] + sampling.guidance) * 128
            pixels = (noise * 100 + level).clamp(0, 255).to(torch.uint8)
            pictures.append(Image.fromarray(pixels.numpy()))
        return pictures

    def answer(self, questions, features, max_new_tokens=32):
        self.answered += len(questions)
        if features is None:
            return [f"{len(question)} letters" for question in questions]
        return [
            f"{question[::-1]} {float(seen.sum()):.3f}"
            for question, seen in zip(questions, features["understanding"], strict=True)
        ]

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(self.official_state(), directory / "model.safetensors")
        described = {"family": self.family, "network": {"transform": self.transform}}
        (directory / "reca_model.json").write_text(json.dumps(described))

    def load(self, path: Path) -> None:
        self.load_state_dict(load_file(path / "model.safetensors"))

    def load_parts(self, parts, sha256=None):
        if set(parts) != {"network", "tokenizer"}:
            raise ValueError(f"the toy is made of network, tokenizer; given: {', '.join(parts)}")
        self.load(parts["network"])


def build(network):
    return DrawingToy(**network)


def png(seed: int, size: int = 6) -> bytes:
    """A small random picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


class Pictures:
    """An in-memory data set of random pictures; `changed` replaces single samples."""

    def __init__(self, size: int, changed: dict[int, Sample] | None = None) -> None:
        self.samples = [Sample(f"picture-{i}", png(i), f"caption {i}") for i in range(size)]
        for position, sample in (changed or {}).items():
            self.samples[position] = sample

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def fingerprint(self) -> str:
        return "pictures"

    @property
    def left_out(self) -> dict[str, list[str]]:
        return {}
