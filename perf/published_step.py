"""Steps of the published recipes at full size on this device: time and peak memory beside what `reca plan` says.

    python -m perf.published_step paper_showo_512 --out docs/results/published_step.json

Everything is the recipe's own (network, precision, checkpointing, batch sizes, accumulation) except the weights, which
are random, and the pictures and texts, which are drawn: time and memory do not depend on them. `--layers` keeps the
first layers of the language model only, and `--batch` lowers the batch sizes, for models that one device does not hold.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perf import processor
from reca.align import distributed, trainer
from reca.align.batches import FeatureData, plan_step
from reca.align.memory import footprint
from reca.align.schedule import learning_rate
from reca.align.state import freeze
from reca.config import compose
from reca.config.recipe import Recipe
from reca.config.schema import ModelConfig
from reca.core.artifacts import versions, write_json
from reca.core.devices import device_of
from reca.core.rng import numpy_generator
from reca.data.prompts import bank
from reca.models.contract import UnifiedModel
from reca.models.registry import build_model

PICTURES = 4  # encoded; micro-batches repeat them
WORDS_PER_ANSWER = 60
UNKNOWN = "filler"  # the id of other words; the families refuse what they know as an unknown word
QWEN = {  # ids of the marks in Qwen2.5's vocabulary
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "\n": 198,
    "\n\n": 271,
}


def vocabulary(family: str) -> dict[str, int]:
    """Token -> id: the prompts' words, and markers under the released ids; the rest are fillers."""
    marks = {"<|endoftext|>": 50256} if family == "showo" else QWEN
    size = 50295 if family == "showo" else 151665
    words = {w for p in bank("paper_like") for w in re.findall(r"\w+|[^\w\s]+", p.lower())}
    free = (index for index in range(size) if index not in set(marks.values()))
    found = dict(marks)
    for word in [*sorted(words), "user", "assistant", UNKNOWN]:
        found.setdefault(word, next(free))
    return found | {f"filler{index}": index for index in free}


def write_tokenizer(family: str, folder: Path) -> None:
    """A word-level tokenizer of the released size."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = vocabulary(family)
    core = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [token for token in ids if token.startswith("<|") or token.isspace()]
    core.add_tokens([AddedToken(mark, normalized=False) for mark in marks])
    end = "<|endoftext|>" if family == "showo" else "<|im_end|>"
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, pad_token="<|endoftext|>")
    made.save_pretrained(str(folder))


def with_tokenizer(model: Any, family: str) -> UnifiedModel:
    """The model with `write_tokenizer`'s front end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(family, folder)
        model.read_tokenizer(folder)
    return model


class Rows:
    """A cache in memory that repeats a few encoded pictures."""

    def __init__(self, features: dict[str, Tensor]) -> None:
        self.features = features

    def __len__(self) -> int:
        return 10_000

    def rows(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Features of these pictures."""
        which = [index % PICTURES for index in indices]
        return {name: tensor[which] for name, tensor in self.features.items()}


def data_for(model: UnifiedModel, recipe: Recipe, side: int) -> FeatureData:
    """Drawn pictures through the model's encoders, and conversations of LLaVA's length."""
    from PIL import Image

    drawn = numpy_generator("published step").integers(0, 256, (PICTURES, side, side, 3), "uint8")
    pictures = [Image.fromarray(one) for one in drawn]
    rows = {
        use: Rows({name: row.cpu() for name, row in model.encode(pictures, use).items()})
        for use in ("draw", "read")
        if use == "draw" or "i2t" in recipe.active()
    }
    words = re.findall(r"\w+", " ".join(bank("paper_like")).lower())
    talk = [("describe the image", " ".join(words[:WORDS_PER_ANSWER]))] * 3
    asked = [[talk]] * len(rows["draw"]) if "read" in rows else []
    return FeatureData(
        draw=rows["draw"],
        read=rows.get("read"),
        prompts=bank("paper_like"),
        read_conversations=asked,
    )


class Run:
    """One model of an experiment on this device, and its optimiser steps."""

    def __init__(
        self, experiment: str, name: str, layers: int | None = None, batch: int | None = None
    ) -> None:
        chosen: ModelConfig = compose.load(experiment).models[name]
        self.recipe, network = chosen.align, chosen.network
        for task in self.recipe.tasks.values():
            task.batch = min(task.batch, batch or task.batch)
        if layers is not None:
            network = {**network, "llm": {**network["llm"], "num_hidden_layers": layers}}
        self.world = distributed.ProcessGroup(device=device_of("auto"))
        torch.manual_seed(0)
        with self.world.device:
            self.model = with_tokenizer(build_model(chosen.family, network), chosen.family).eval()
        planned = footprint(self.model, self.recipe, 1, half=self.recipe.precision == "bf16")
        self.facts = {
            "experiment": experiment,
            "model": name,
            "layers": layers,
            "batch": {task: settings.batch for task, settings in self.recipe.active().items()},
            "planned_bytes": {part: int(size) for part, size in planned.parts.items()},
            "machine": machine_of(self.world.device),
            "versions": versions(),
        }
        self.data = data_for(self.model, self.recipe, network["resolution"])
        names = freeze(self.model, self.recipe.trains)
        parts = trainer.set_up(self.model, names, self.recipe, self.world)
        self.objective, self.state, self.blocks = parts

    def steps(self, count: int) -> Iterator[dict[str, Any]]:
        """Time, peak memory, losses and token counts of each step."""
        with distributed.recomputed(self.blocks, self.recipe.activation_checkpointing):
            for step in range(count):
                self._settled()
                started = time.perf_counter()
                line = self._step(step)
                line |= {"seconds": self._settled() - started}
                if self.world.device.type == "cuda":
                    line["peak_bytes"] = torch.cuda.max_memory_allocated()
                    torch.cuda.reset_peak_memory_stats()
                yield line

    def _step(self, step: int) -> dict[str, Any]:
        recipe, world = self.recipe, self.world
        plan = plan_step(self.model, self.data, recipe, seed=0, step=step, processes=world)
        counts = trainer.tokens_by_task(plan, recipe, world)
        totals = trainer.backward(self.objective, self.data, plan, counts, recipe, world)
        norm = trainer.gradient_norm(self.state)
        losses = trainer.mean_losses(plan, totals, counts, recipe, world)
        trainer.update(self.state, learning_rate(recipe, step), norm, recipe)
        self.state.optimizer.zero_grad(set_to_none=True)
        return {"loss": losses, "grad_norm": norm, "tokens": counts}

    def _settled(self) -> float:
        """The time when the device has done all that it was given."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def machine_of(device: torch.device) -> str:
    """The device's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def main() -> None:
    """Measure one model and add it to the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment")
    parser.add_argument("--model", help="of the experiment's; default: its first")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--layers", type=int, help="of the language model; default: all")
    parser.add_argument(
        "--batch", type=int, help="at most so many samples of a task; default: the recipe's"
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    name = given.model or next(iter(compose.load(given.experiment).models))
    run = Run(given.experiment, name, given.layers, given.batch)
    kept = json.loads(given.out.read_text()) if given.out.is_file() else []
    done: list[dict[str, Any]] = []
    for line in run.steps(given.steps):
        print(json.dumps(line), flush=True)
        done.append(line)
        write_json(given.out, [*kept, {**run.facts, "steps": done}])


if __name__ == "__main__":
    main()
