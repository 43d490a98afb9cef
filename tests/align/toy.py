"""A tiny unified model and its data: the contract in 100 lines, for tests of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from reca.align.batches import FeatureData
from reca.models.contract import DecayGroups, Features, Loss, UnifiedModel

CODES, TOKENS, WIDTH, SEEN = 16, 6, 16, 5


@dataclass
class ToyDraws:
    mask: torch.Tensor  # (B, N), True where the code is hidden

    @property
    def count(self) -> int:
        return int(self.mask.sum())


@dataclass
class ToyConversation:
    questions: torch.Tensor  # (B, 64) letter counts
    answers: list[list[int]]

    @property
    def count(self) -> int:
        return sum(map(len, self.answers))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(x))


class Toy(UnifiedModel):
    """Masked-code cross entropy; `hide_all` hides every code, so that draws do not depend on the rank."""

    family = "toy"

    def __init__(self, seed: int = 0, hide_all: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.hide_all = hide_all
        self.encoder = nn.Linear(SEEN, SEEN)  # frozen
        self.frozen_blocks = nn.ModuleList(Block() for _ in range(2))
        self.projector = nn.Linear(SEEN, WIDTH)
        self.embedding = nn.Embedding(CODES + 1, WIDTH)
        self.words = nn.Linear(64, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, CODES)
        self.register_buffer("shift", torch.ones(1))

    def encode(self, images, use):
        raise NotImplementedError

    def encoder_fingerprint(self, use):
        return "toy"

    def _letters(self, texts) -> torch.Tensor:
        rows = [one_hot(torch.tensor([ord(c) % 64 for c in t]), 64).sum(0) for t in texts]
        return torch.stack(rows).to(self.encoder.weight)

    def _seen(self, features) -> torch.Tensor:
        weight = self.encoder.weight
        return self.projector(
            self.encoder(features["understanding"].to(weight.device, weight.dtype))
        )

    def condition(self, texts, features=None):
        state = self.words(self._letters(texts))  # (B, D)
        if features is not None:
            state = state + self._seen(features)
        return state

    def sample_noise(self, batch, generator):
        if self.hide_all:
            return ToyDraws(torch.ones(batch, TOKENS, dtype=torch.bool))
        ratio = torch.rand(batch, 1, generator=generator)
        return ToyDraws(torch.rand(batch, TOKENS, generator=generator) <= ratio)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x * self.shift)

    def generation_loss(self, target, condition, noise):
        mask = noise.mask.to(target["target"].device)
        seen = torch.where(mask, CODES, target["target"])  # (B, N)
        x = self.embedding(seen).cumsum(1) + condition[:, None]
        logits = self._run(x)
        total = cross_entropy(logits[mask].float(), target["target"][mask], reduction="sum")
        return Loss(total, noise.count)

    def conversation(self, turns, with_image=True):
        questions = ["".join(q for q, _ in turn) for turn in turns]
        answers = [[ord(c) % CODES for _, a in turn for c in a] for turn in turns]
        return ToyConversation(self._letters(questions), answers)

    def answer_loss(self, conversation, features):
        state = self.words(conversation.questions.to(self.encoder.weight.device))
        if features is not None:
            state = state + self._seen(features)
        logits = self._run(state)
        rows = [row for row, codes in enumerate(conversation.answers) for _ in codes]
        codes = torch.tensor([c for codes in conversation.answers for c in codes])
        total = cross_entropy(logits[rows].float(), codes.to(logits.device), reduction="sum")
        return Loss(total, conversation.count)

    def generate(self, condition, unconditional, sampling, generators):
        raise NotImplementedError

    def unconditional(self, batch):
        raise NotImplementedError

    def answer(self, questions, features, max_new_tokens=32):
        raise NotImplementedError

    def trainable_parameters(self):
        frozen = ("encoder.", "frozen_blocks.")
        return [name for name, _ in self.named_parameters() if not name.startswith(frozen)]

    def decay_groups(self):
        names = self.trainable_parameters()
        return DecayGroups(
            decay=tuple(name for name in names if not name.endswith("bias")),
            no_decay=tuple(name for name in names if name.endswith("bias")),
        )

    def official_state(self):
        return dict(self.state_dict())

    def load(self, path: Path) -> None:
        raise NotImplementedError

    def save(self, directory: Path) -> None:
        raise NotImplementedError


class Rows:
    """An in-memory cache of `size` images."""

    def __init__(self, size: int, seed: int) -> None:
        drawn = torch.Generator().manual_seed(seed)
        self.target = torch.randint(CODES, (size, TOKENS), generator=drawn)
        self.understanding = torch.randn(size, SEEN, generator=drawn)

    def __len__(self) -> int:
        return len(self.target)

    def rows(self, indices) -> Features:
        chosen = list(indices)
        return {"target": self.target[chosen], "understanding": self.understanding[chosen]}


def toy_data(size: int = 11) -> FeatureData:
    """11 images and 7 conversations: with batches of 2 to 4, epochs end in the middle of a step."""
    read = 7
    return FeatureData(
        draw=Rows(size, 1),
        read=Rows(read, 2),
        prompts=["Describe it.", "What is here?", "Tell all."],
        draw_captions=[f"caption {i}" for i in range(size)],
        read_conversations=[
            [[(f"question {i}?", "yes" * (i + 1)), ("more?", "no")], [("other?", "a b c")]]
            for i in range(read)
        ],
        text_conversations=[[[("hello", "there")]]],
    )
