"""A small results tree in the real record formats, with invented scores and true pictures of the laptop world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

from reca.config.compose import load, resolved
from reca.core import artifacts
from reca.core.rng import numpy_generator
from reca.evaluation.choose import choose
from reca.evaluation.graded import single_level
from reca.evaluation.tasks.laptop import strict_means, task_means
from reca.evaluation.tasks.laptop_prompts import (
    GENEVAL_TASKS,
    STRICT,
    prompts,
    reconstruction_key,
    sample_key,
)
from reca.inference.imageset import ImageSetWriter
from reca.report import page
from reca.toyworld.scenes import draw_pixels, draw_scene

MODEL, CODE = "showo_tiny_bound", "c0de" * 16
SKILL = {"base": 0.30, "sft": 0.34, "reca": 0.47, "shuffled": 0.16}
KINDS = ("describe", "colour", "count", "exist", "place", "relation", "shape")


def experiment(**changes: Any) -> dict[str, Any]:
    """The laptop experiment, resolved, made small: one base for three seeds, four arms, one reading of guidance."""
    arms, seeds = "arms=[base,reca,sft,shuffled]", "seeds=[0,1,2]"
    found = resolved(load("laptop", [arms, seeds, "benchmarks.laptop.base_guidance=false"]))
    found["models"][MODEL]["seeds"], found["benchmarks"]["laptop"]["curve_prompts"] = [], 0
    found["models"][MODEL]["weights"]["path"] = f"weights/{MODEL}/0"
    small = {"prompts": 6, "development_prompts": 2, "reconstructions": 3}
    # Only a recorded run draws the protocol's test prompts.
    found["benchmarks"]["laptop"] |= small | {"test_seeds": {}}
    found["models"][MODEL]["align"]["steps"] = 12
    return found | changes


class Tree:
    """Writes `results/laptop` below the working directory; `text` overrides what the first dense prompt says."""

    def __init__(
        self,
        plain: dict[str, Any],
        *,
        skill: dict[str, float] | None = None,
        levels: Sequence[float] = (0.0, 1.0, 2.0, 4.0),
        text: str | None = None,
    ) -> None:
        self.plain, self.levels, self.text = plain, list(levels), text
        self.skill = skill or SKILL
        self.root = Path("results/laptop")
        self.model = self.root / MODEL
        self.benchmark = plain["benchmarks"]["laptop"]
        self.runs = [(arm, seed) for arm in plain["arms"] for seed in plain["seeds"]]

    def write(self) -> Path:
        # Asking git for every stage takes longer than all the rest.
        with mock.patch.object(artifacts, "git_commit", return_value="c" * 40):
            self.upstream()
            self.chosen = {}
            if len(self.levels) > 1:
                self.scores("development")
                self.chosen = self.choice()
            self.scores("test")
        return self.root

    def report(self) -> None:
        """The report's stage, after `write`."""
        with (
            mock.patch.object(artifacts, "git_commit", return_value="c" * 40),
            self.stage("report", self.root / "report", []) as stage,
        ):
            page.build(self.plain, self.root, stage.staging)

    def stage(
        self,
        name: str,
        out: Path,
        reads: Sequence[Path],
        seed: int | None = None,
        section: dict[str, Any] | None = None,
    ) -> artifacts.Stage:
        inputs = {folder.name: folder / artifacts.MANIFEST for folder in reads}
        return artifacts.Stage(
            name, out, inputs=inputs, section=section or {}, seed=seed, code=CODE
        )

    # ---- stages --------------------------------------------------------------------------------------------------
    def upstream(self) -> None:
        with self.stage("data", Path("data/laptop-reconstruct"), []) as stage:
            (stage.staging / "data.parquet").write_bytes(b"pictures")
        with self.stage("base", self.model / "base", []) as stage:
            (stage.staging / "model.safetensors").write_bytes(b"weights")
        for use in ("draw", "read"):
            reads = [self.model / "base", Path("data/laptop-reconstruct")]
            with self.stage("cache", self.model / "cache" / use, reads) as stage:
                artifacts.write_json(stage.staging / "cache.json", {"rows": 200})
                stage.note(encode_seconds=4.0)
        for arm, seed in self.runs:
            if arm != "base":
                self.align(arm, seed)

    def align(self, arm: str, seed: int) -> None:
        reads = [self.model / "base", *(self.model / "cache" / use for use in ("draw", "read"))]
        with self.stage("align", self.model / arm / f"seed-{seed}", reads, seed) as stage:
            recipe, drawing = (
                self.plain["models"][MODEL]["align"],
                "t2i" if arm == "sft" else "reca",
            )
            noise = numpy_generator("loss", arm, seed).normal(size=(recipe["steps"], 2))
            rows = []
            for step in range(1, recipe["steps"] + 1):
                fall = 1 / (1 + 0.03 * step)
                loss = {drawing: 2.5 + 3 * fall * (1 - self.skill[arm]), "i2t": 0.3 + fall}
                loss = {t: v + 0.15 * noise[step - 1, i] for i, (t, v) in enumerate(loss.items())}
                tokens = {drawing: 400 + step % 7, "i2t": 320}
                rows.append(
                    {"step": step, "loss": loss, "lr": 1e-4, "grad_norm": 1.0, "tokens": tokens}
                )
            (stage.staging / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def choice(self) -> dict[str, Any]:
        folders = [self.folder(arm, seed, "development", "scores") for arm, seed in self.runs]
        found = choose(artifacts.read_json(folder / "scores.json") for folder in folders)
        inputs = {f.parents[2].name: f / artifacts.MANIFEST for f in folders}
        with artifacts.Stage(
            "choose", self.model / "guidance", inputs=inputs, section={}, code=CODE
        ) as stage:
            chosen = {name: found[name] for name in ("chosen", "levels")}
            artifacts.write_json(stage.staging / "guidance.json", chosen)
            artifacts.write_json(stage.staging / "sweep.json", {"sweep": found["sweep"]})
        return found["chosen"]

    def folder(self, arm: str, seed: int, split: str, part: str) -> Path:
        return self.model / f"{arm}-{seed}" / "laptop" / split / part

    def scores(self, split: str) -> None:
        for arm, seed in self.runs:
            self.samples_of(arm, seed, split)
            with self.stage(
                "score",
                self.folder(arm, seed, split, "scores"),
                [self.folder(arm, seed, split, "samples")],
                seed,
                self.benchmark,
            ) as stage:
                found, items = self.score_of(arm, seed, split)
                artifacts.write_json(stage.staging / "scores.json", found)
                (stage.staging / "items.jsonl").write_text(
                    "".join(json.dumps(i) + "\n" for i in items)
                )

    # ---- contents ------------------------------------------------------------------------------------------------
    def prompts(self, split: str) -> list[Any]:
        size = self.benchmark["development_prompts" if split == "development" else "prompts"]
        return prompts(split, size, self.benchmark["seed"])

    def levels_of(self, arm: str, split: str) -> list[float]:
        """Every level on development prompts, the chosen ones on the test's, and all where there is a curve."""
        if split == "development" or len(self.levels) == 1 or self.benchmark["curve_prompts"]:
            return self.levels
        return sorted(set(self.chosen[arm].values()))

    def is_at(self, task: str, arm: str, split: str, level: float) -> bool:
        """Whether a task is scored at a level: on test prompts at the one that was chosen."""
        if split == "development" or not self.chosen or self.benchmark["curve_prompts"]:
            return True
        return self.chosen[arm]["geneval" if task in GENEVAL_TASKS else "dense"] == level

    def samples_of(self, arm: str, seed: int, split: str) -> None:
        trained = self.model / ("base" if arm == "base" else f"{arm}/seed-{seed}")
        inputs = {"model": trained / artifacts.MANIFEST}
        if split == "test" and len(self.levels) > 1:
            inputs["guidance"] = self.model / "guidance" / "guidance.json"
        out = self.folder(arm, seed, split, "samples")
        with (
            artifacts.Stage(
                "sample", out, inputs=inputs, section={}, seed=seed, code=CODE
            ) as stage,
            ImageSetWriter(stage.staging / "images.tar") as writer,
        ):
            for level in self.levels_of(arm, split):
                for prompt in self.prompts(split):
                    told = self.text if self.text and prompt.id == "dense-0000" else prompt.text
                    key = sample_key(level, prompt.id)
                    writer.add(key, 0, some_picture(arm, seed, key), {"prompt": told})
            for index in range(self.benchmark["reconstructions"]):
                key = reconstruction_key(index)
                writer.add(key, 0, some_picture(arm, seed, key), {"prompt": "again"})

    def score_of(
        self, arm: str, seed: int, split: str
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        generator = numpy_generator("score", arm, seed, split)
        skill = self.skill[arm] + 0.02 * seed
        items, by_level = [], {}
        for level in self.levels_of(arm, split):
            likely = min(0.95, skill * (0.7 + 0.12 * level - 0.02 * level**2))
            rows = [
                {
                    "kind": "prompt",
                    "id": prompt.id,
                    "task": prompt.task,
                    "guidance": level,
                    "score": float(
                        generator.binomial(1 if prompt.task in GENEVAL_TASKS else 3, likely)
                    )
                    / (1 if prompt.task in GENEVAL_TASKS else 3),
                }
                for prompt in self.prompts(split)
                if self.is_at(prompt.task, arm, split, level)
            ]
            items += rows
            by_level[str(level)] = task_means((r["task"], r["score"]) for r in rows)
            if self.benchmark["base_guidance"]:
                for row in (r for r in rows if r["task"] in GENEVAL_TASKS):
                    row["strict"] = row["score"] * float(generator.random() < 0.7)
                strict = [(r["task"], r["strict"]) for r in rows if "strict" in r]
                by_level[str(level)] |= strict_means(strict)
        for index in range(self.benchmark["reconstructions"]):
            share = float(generator.choice([0.0, 0.5, 1.0]))
            items.append(
                {
                    "kind": "reconstruction",
                    "id": f"scene-{index:04d}",
                    "exact": float(share == 1),
                    "objects": share,
                }
            )
        for index in range(6):
            right = float(generator.random() < 0.8)
            items.append(
                {"kind": "question", "id": f"{index:04d}", "task": KINDS[index], "score": right}
            )
        kinds = {kind: 0.6 + 0.3 * float(generator.random()) for kind in KINDS}
        summary = single_level(by_level) | {f"understanding.{k}": v for k, v in kinds.items()}
        summary |= {"understanding": sum(kinds.values()) / len(kinds)}
        summary |= {"reconstruction_exact": skill / 2, "reconstruction": skill}
        if self.chosen and self.benchmark["base_guidance"] and split == "test":
            own = {n: str(level) for n, level in self.chosen[arm].items()}
            summary |= {n: by_level[level][n] for n, level in own.items()}
            summary |= dict.fromkeys((f"{STRICT}.{task}" for task in GENEVAL_TASKS), skill)
        found = {
            "benchmark": "laptop",
            "run": f"{arm}-{seed}",
            "split": split,
            "seed": seed,
            "by_guidance": by_level,
            "summary": summary,
            "intervals": {},
            "label": "laptop(examiner)",
            "coverage": {"share": 1.0},
            "partial": False,
        }
        return found, items


def some_picture(*key: object) -> Image.Image:
    """A true picture of the laptop world; which one says nothing."""
    return Image.fromarray(draw_pixels(draw_scene(numpy_generator("some", *key))))
