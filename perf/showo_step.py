"""Show-o's training step as published and as here: time and memory of a micro-batch, side by side in one run.

    python -m perf.showo_step --out docs/results/showo_step.json

`straightforward` is `perf.showo_direct`, the published micro-batch of the CLIP variant at 512 px: two RecA rows, two
conversations and a text-to-image row of weight 0, with every pad and the logits of all positions. `ours` calls the
package's two losses. Both give the same losses and gradients (checked here). Neither checkpoints activations, as
published (showo.md 7.13). What is measured: `perf.steps`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perf import pairs, showo_direct
from perf.showo_direct import Given
from perf.steps import DIRECT, Losses, measured
from reca.core.artifacts import write_json
from reca.core.rng import generator
from reca.models.contract import Features
from reca.models.registry import build_model
from reca.models.showo.batch import Condition, Conversation
from reca.models.showo.layout import conversation_room
from reca.models.showo.model import ShowoModel

# tokens with both frames: a RecA prompt (113 characters on average), a conversation, a caption (showo.md 5, 7.8)
PROMPTS, CONVERSATIONS, CAPTION, SYSTEM = (28, 36), (160, 240), 20, 28


def scaled(width: int, layers: int) -> dict[str, Any]:
    """The network section of the released CLIP variant at 512 pixels with `width` for 2048 and `layers` for 24.

    Tokens shrink as the width does and the vocabulary also as the depth, so that attention, head and encoders have
    their shares of the work. `width` is 512 times a square, or the image is no square of whole patches.
    """
    share, depth = width / 2048, layers / 24
    side = round(16 * math.sqrt(4 * share))
    vocabulary, bits = round(58498 * share * depth), round(math.log2(8192 * share * depth))
    patches = round(24 * math.sqrt(share))
    # all layers, of which the package leaves out the last
    tower = 32 * max(1, round(32 * share * math.sqrt(depth)))
    return {
        "resolution": side * 16,
        "understanding": "clip",
        "llm_vocab_size": vocabulary - 11 - 2**bits,
        "endoftext": vocabulary - 12 - 2**bits,
        "max_text": round(128 * share),
        "head_text": round(128 * share),
        "llm": {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": max(1, width // 64),
            "num_key_value_heads": max(1, width // 64),
        },
        "vq": {"ch": 4 * max(1, round(32 * share * math.sqrt(depth))), "z_channels": bits},
        "clip_vision": {
            "hidden_size": tower,
            "intermediate_size": 4 * tower,
            "num_hidden_layers": 24,
            "num_attention_heads": tower // 32,
            "image_size": patches * 14,
            "patch_size": 14,
            "hidden_act": "quick_gelu",
        },
        "projector": [tower, width, width],
        "options": {"max_text_training": round(576 * share)},
    }


class Sample:
    """One micro-batch in the forms that the two sides read, and the image features of each side."""

    def __init__(self, model: ShowoModel, share: float) -> None:
        self.model, config = model, model.config
        drawn = generator("bench", "showo step")
        side, clip_side, ids = config.resolution, config.tower.image_size, config.ids

        def pixels(rows: int, size: int) -> Tensor:
            return torch.rand(rows, 3, size, size, generator=drawn) * 2 - 1

        def text(length: int) -> list[int]:
            count = max(2, round(length * share))
            inner = torch.randint(0, config.endoftext, (count - 2,), generator=drawn)
            return [ids.bos, *inner.tolist(), ids.eos]

        conversations = [text(length) for length in CONVERSATIONS]
        labels = [  # questions have no loss: LLaVA's are a fifth of the text
            [
                showo_direct.IGNORE if place < len(row) // 5 else token
                for place, token in enumerate(row)
            ]
            for row in conversations
        ]
        noise = model.sample_noise(2, drawn)
        other = model.sample_noise(1, drawn)
        self.given = Given(
            drawn=pixels(2, side),
            read=pixels(2, clip_side),
            other=pixels(1, side),
            prompts=[text(length) for length in PROMPTS],
            conversations=conversations,
            labels=labels,
            captions=[text(CAPTION)],
            system=text(SYSTEM),
            t=noise.t,
            u=noise.u,
            other_t=other.t,
            other_u=other.u,
            dropout=other.text_dropout,
        )
        self.noise = noise
        self.found = showo_direct.encoded(config, model.frozen, self.given)
        self.features = encoded(model, self.given)

    def straightforward(self) -> dict[str, Tensor]:
        """The published losses by task."""
        model = self.model
        room = model.options.max_text_training or model.config.max_text
        return showo_direct.losses(model.network, self.given, self.found, room)

    def ours(self) -> dict[str, Callable[[], Tensor]]:
        """The package's losses by task, which are computed when they are called."""
        model, given, (drawn, read) = self.model, self.given, self.features
        condition = Condition(given.prompts, drawn["understanding"])
        room = conversation_room(model.config, model.options, given.system)
        talk = Conversation(given.conversations, given.labels, room, given.system)
        return {
            "reca": lambda: model.generation_loss(drawn, condition, self.noise).mean,
            "i2t": lambda: model.answer_loss(talk, read).mean,
        }

    def step(self, kind: str) -> Losses:
        """Forward and backward pass of one kind; ours differentiates task by task, as the trainer does."""
        self.model.zero_grad(set_to_none=True)
        if kind == DIRECT:
            losses = self.straightforward()
            showo_direct.total(losses).backward()
            return {task: float(loss.detach()) for task, loss in losses.items()}
        found = {}
        for task, call in self.ours().items():
            loss = call()
            loss.backward()
            found[task] = float(loss.detach())
        return found

    def encode(self, kind: str) -> object:
        """The frozen encoders of one kind."""
        if kind == DIRECT:
            return showo_direct.encoded(self.model.config, self.model.frozen, self.given)
        return encoded(self.model, self.given)

    def kept_bytes(self, kind: str) -> int:
        """The most bytes that autograd keeps between the passes."""
        forwards = list(self.ours().values())
        if kind == DIRECT:
            forwards = [lambda: showo_direct.total(self.straightforward())]
        return max(pairs.kept_bytes(self.model, forward) for forward in forwards)


@torch.no_grad()
def encoded(model: ShowoModel, given: Given) -> tuple[Features, Features]:
    """What the cache holds of a micro-batch's images: of targets, and of images that are read."""
    frozen = model.frozen
    assert frozen.clip is not None
    seen = frozen.clip(frozen.clip_condition(given.drawn))
    drawn = {"target": frozen.codes(given.drawn), "understanding": seen}
    return drawn, {"understanding": frozen.clip(given.read)}


def measure(width: int, layers: int, repetitions: int) -> dict[str, Any]:
    """Everything that the result file holds."""
    torch.manual_seed(0)
    model = build_model("showo", scaled(width, layers))
    assert isinstance(model, ShowoModel)
    sizes = {"width": width, "layers": layers, "network": scaled(width, layers)}
    return {"model": sizes} | measured(Sample(model, width / 2048), repetitions)


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(given.width, given.layers, given.repetitions)
    write_json(given.out, found)
    print(found["straightforward_over_ours"], found["ours_over_straightforward"])


if __name__ == "__main__":
    main()
