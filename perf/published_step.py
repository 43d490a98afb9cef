"""Steps of the published recipes at full size on this device: time, and peak memory compared with `reca plan`.

    python -m perf.published_step paper_showo_512 --out docs/results/published_step.json

Everything is the recipe's (network, precision, checkpointing, batch sizes, accumulation) except weights, images and
texts, which are random: time and memory do not depend on them. `--layers` keeps only the first layers of the language
model and `--batch` lowers the batch sizes, for models that do not fit on one device.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perf import processor
from reca.align import distributed, trainer
from reca.align.batches import FeatureData, prepared_steps
from reca.align.memory import footprint
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

PICTURES = 4  # number of encoded images; micro-batches repeat them
WORDS_PER_ANSWER = 60
UNKNOWN = "filler"  # the id of other words; the families reject known unknown-word tokens
QWEN = {  # ids of the markers in Qwen2.5's vocabulary
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
    markers = {"<|endoftext|>": 50256} if family == "showo" else QWEN
    size = 50295 if family == "showo" else 151665
    words = {w for p in bank("paper_like") for w in re.findall(r"\w+|[^\w\s]+", p.lower())}
    free = (index for index in range(size) if index not in set(markers.values()))
    found = dict(markers)
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
    markers = [token for token in ids if token.startswith("<|") or token.isspace()]
    core.add_tokens([AddedToken(mark, normalized=False) for mark in markers])
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
    """An in-memory cache that repeats a few encoded images."""

    def __init__(self, features: dict[str, Tensor]) -> None:
        self.features = features

    def __len__(self) -> int:
        return 10_000

    def rows(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Features of these images."""
        which = [index % PICTURES for index in indices]
        return {name: tensor[which] for name, tensor in self.features.items()}


def data_for(model: UnifiedModel, recipe: Recipe, side: int) -> FeatureData:
    """Random images through the model's encoders, and conversations of LLaVA's length."""
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
    questions = [[talk]] * len(rows["draw"]) if "read" in rows else []
    return FeatureData(
        draw=rows["draw"],
        read=rows.get("read"),
        prompts=bank("paper_like"),
        read_conversations=questions,
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
        recipe, world = self.recipe, self.world
        plans = prepared_steps(self.model, self.data, recipe, range(count), seed=0, processes=world)
        with trainer.wrapped(self.blocks, recipe), closing(plans):
            for step in range(count):
                self._settled()
                started = time.perf_counter()
                line = trainer.take_step(self.objective, self.state, plans, recipe, world, step)
                line |= {"seconds": self._settled() - started}
                if self.world.device.type == "cuda":
                    line["peak_bytes"] = torch.cuda.max_memory_allocated()
                    torch.cuda.reset_peak_memory_stats()
                yield line

    def _settled(self) -> float:
        """The time after the device has finished all work."""
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
    parser.add_argument("--model", help="model of the experiment; default: its first")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--layers", type=int, help="number of layers of the language model; default: all"
    )
    parser.add_argument(
        "--batch", type=int, help="maximum number of samples per task; default: the recipe's"
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
