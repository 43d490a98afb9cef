"""The search for a laptop model's recipe: bases phase by phase, their marks, and arms.

    python -m perf.laptop_search base --experiment laptop_pretrain_bagel --seed 0 --work work/search/a [key=value ...]
    python -m perf.laptop_search arm --experiment laptop_bagel --base work/search/a/d_draw --arm reca \
        --record docs/results/laptop_bagel_development.jsonl [key=value ...]

`base` makes every part and phase of a pretraining experiment below `--work`, a model folder after each phase, and
resumes; a finished phase is not repeated. `arm` trains one arm (`base`: none) and appends one row of its
scores. `key=value` are Hydra overrides of the experiment; the row has them, so that the command can be repeated.
Test prompts, scenes and questions are never sampled: every score uses split `development` with a seed of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from perf.laptop_bridge import bridge
from reca.align.log import LOG
from reca.align.trainer import align
from reca.align.training_data import feature_data
from reca.config.compose import load
from reca.config.recipe import for_arm
from reca.core.artifacts import sha256_json
from reca.core.devices import placed
from reca.core.images import decode
from reca.core.rng import generator
from reca.data.prompts import bank
from reca.evaluation.tasks import laptop_edit
from reca.evaluation.tasks import laptop_prompts as asked
from reca.evaluation.tasks.laptop import (
    reconstruction_scores,
    same_answer,
    score_prompt,
    share_of_facts,
    strict_score,
    task_means,
)
from reca.inference.generate import answers, draw, inference
from reca.models.contract import Sampling, editor
from reca.models.import_base import make_base
from reca.models.registry import load_model
from reca.report.trained import fall
from reca.toyworld import examiner
from reca.toyworld.pretrain.binding import bound
from reca.toyworld.pretrain.run import (
    encoded,
    phase_data,
    pretrain_part,
    pretraining_of,
    write_start,
)
from reca.toyworld.render import render

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.config.schema import Experiment, Sampler
    from reca.models.contract import UnifiedModel

SPLIT, SEED = "development", 777  # the seed of every search so far; the experiments use 0
QUESTION_SCENES, RECONSTRUCTIONS, BATCH = 300, 96, 80
EDIT_SEED, EDITS_PER_KIND, IMAGE_GUIDANCE = 7, 60, 1.5  # the seed of every search for editing
EDIT_LEVELS = (2.0, 3.0, 5.0)


# ---- scores ------------------------------------------------------------------------------------------
def _examine(images: Sequence[Image]) -> list[list[dict[str, Any]]]:
    return [examiner.detect(np.asarray(image.convert("RGB"))) for image in images]


def prompt_scores(
    model: UnifiedModel, sampler: Sampler, level: float, per_task: int
) -> dict[str, float]:
    """Mean score by task at one guidance level, `geneval`, `strict` and `objects` per image."""
    prompts = sorted(asked.prompts(SPLIT, per_task, SEED), key=lambda prompt: len(prompt.text))
    sampling = _sampling(sampler, level)
    rows, exact, objects = [], [], []
    for first in range(0, len(prompts), BATCH):
        batch = prompts[first : first + BATCH]
        noise = [generator(SEED, prompt.id) for prompt in batch]
        images = draw(model, [prompt.text for prompt in batch], None, sampling, noise)
        for prompt, found in zip(batch, _examine(images), strict=True):
            score = score_prompt(prompt, found)
            rows.append((prompt.task, score))
            objects.append(len(found))
            if prompt.task == "dense":  # which half of the facts is missing
                for key in ("class", "color"):
                    facts = [{key: fact[key]} for fact in prompt.facts["facts"]]
                    rows.append((f"dense {key}", share_of_facts(facts, found)))
            if prompt.task in asked.GENEVAL_TASKS:
                exact.append((prompt.task, strict_score(prompt, found)))
    means = {**task_means(rows), "strict": task_means(exact)["geneval"]}
    return {name: round(value, 3) for name, value in means.items()} | {
        "objects": round(float(np.mean(objects)), 2)
    }


def reconstruction(model: UnifiedModel, sampler: Sampler) -> dict[str, float]:
    """Share of exact reconstructions and of objects kept, from the embeddings of development scenes."""
    scenes = asked.held_out_scenes(SPLIT, RECONSTRUCTIONS, SEED)
    images = [decode(asked.scene_png(scene), name="scene") for scene in scenes]
    noise = [generator(SEED, "reconstruction", index) for index in range(len(scenes))]
    texts = [bank("laptop")[0]] * len(scenes)
    drawn = draw(model, texts, model.encode(images, "draw"), _sampling(sampler, 0.0), noise)
    rows = [
        reconstruction_scores(found, scene)
        for found, scene in zip(_examine(drawn), scenes, strict=True)
    ]
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}


def _sampling(sampler: Sampler, level: float) -> Sampling:
    return Sampling(
        steps=sampler.steps,
        temperature=sampler.temperature,
        guidance=level,
        options=dict(sampler.options),
    )


def question_scores(model: UnifiedModel, scenes: int = QUESTION_SCENES) -> dict[str, float]:
    """Share of exact answers about development scenes, over all questions and by kind."""
    held_out = asked.held_out_scenes(SPLIT, scenes, SEED)
    questions = asked.held_out_questions(held_out, asked.QUESTIONS_PER_SCENE, SPLIT, SEED)
    images = {
        asked.scene_id(index): decode(asked.scene_png(scene), name="scene")
        for index, scene in enumerate(held_out)
    }
    given = answers(model, questions, images, batch_size=asked.BATCH, max_new_tokens=asked.LONGEST)
    right: dict[str, list[bool]] = defaultdict(list)
    for question in questions:
        for kind in ("all", question.kind):
            right[kind].append(same_answer(given[question.id], question.answer))
    return {kind: round(float(np.mean(rows)), 3) for kind, rows in sorted(right.items())}


def edit_scores(model: UnifiedModel, sampler: Sampler) -> dict[str, dict[str, float]]:
    """Shares of development edits that are right, followed and kept, by text guidance."""
    asked_for = laptop_edit.edits(SPLIT, EDITS_PER_KIND, EDIT_SEED)
    sources = [decode(asked.scene_png(one.edit.source), name=one.id) for one in asked_for]
    texts = [one.edit.instruction for one in asked_for]
    found = {}
    for level in EDIT_LEVELS:
        options = {**sampler.options, "image_guidance": IMAGE_GUIDANCE}
        sampling = replace(_sampling(sampler, level), options=options)
        noise = [generator(EDIT_SEED, one.id) for one in asked_for]
        with inference(model):
            images = editor(model).edit(sources, texts, sampling, noise)
        rows = [
            (one.edit.kind, laptop_edit.score_edit(one.edit, seen))
            for one, seen in zip(asked_for, _examine(images), strict=True)
        ]
        means = laptop_edit.means(rows)
        found[str(level)] = {name: round(value, 3) for name, value in means.items()}
    return found


def scores(
    model: UnifiedModel, sampler: Sampler, levels: Sequence[float], per_task: int
) -> dict[str, Any]:
    """Scores by guidance level and reconstruction of a model."""
    with inference(model):
        by_level = {str(level): prompt_scores(model, sampler, level, per_task) for level in levels}
        return {"reconstruction": reconstruction(model, sampler), "by_guidance": by_level}


# ---- training ----------------------------------------------------------------------------------------
def _worlds(experiment: Experiment, root: Path) -> dict[str, Path]:
    """The rendered worlds of an experiment by role, each in a folder named after its section."""
    folders = {}
    for role, source in experiment.data.items():
        assert source.world is not None
        folder = root / sha256_json(asdict(source.world))[:16]
        if not (folder / "train.parquet").is_file():
            render(source.world, folder)
        folders[role] = folder
    return folders


def train_base(arguments: argparse.Namespace) -> None:
    """Parts and phases of a pretraining experiment, with marks after every phase."""
    experiment = load(arguments.experiment, arguments.overrides)
    pretraining = experiment.pretrain
    assert pretraining is not None, f"{arguments.experiment} has no section `pretrain`"
    ((name, config),) = experiment.models.items()
    work, family = arguments.work, config.family
    folders = _worlds(experiment, arguments.data)
    parts = {}
    for part, fit in pretraining.parts.items():
        parts[part] = out = work / "parts" / part
        if not (out / "done").is_file():
            out.mkdir(parents=True, exist_ok=True)
            places = {"seed": arguments.seed, "work": work / "work" / part, "out": out}
            pretrain_part(family, part, config.network, fit, folders["reconstruct"], **places)
            (out / "done").touch()
    before = work / "start"
    if not before.is_dir():
        shutil.rmtree(unfinished := work / "start.unfinished", ignore_errors=True)
        begin = None
        if pretraining.start:
            begin = Path(pretraining.start.replace("{seed}", str(arguments.seed)))
        write_start(
            family, config.network, unfinished, parts=parts, begin=begin, seed=arguments.seed
        )
        unfinished.rename(before)
    for phase in sorted(pretraining.phases):
        if phase == arguments.until:
            break
        after = work / phase
        if not after.is_dir():
            _phase(experiment, folders, phase, arguments, before, after)
            print(name, phase, "finished", flush=True)
        before = after


def _phase(
    experiment: Experiment,
    folders: Mapping[str, Path],
    phase: str,
    arguments: argparse.Namespace,
    before: Path,
    after: Path,
) -> None:
    assert experiment.pretrain is not None
    recipe = experiment.pretrain.phases[phase]
    ((_, config),) = experiment.models.items()
    model, started = placed(load_model(before)), time.process_time()
    chosen = (experiment.pretrain.answers.get(phase), experiment.pretrain.texts.get(phase))
    read = phase_data(experiment.data, folders, *chosen)
    caches = encoded(model, *read, arguments.work / "cache", "search")
    data = feature_data(recipe, *read, caches, seed=arguments.seed, ranks=1)
    identity = {"model": sha256_json([phase, arguments.seed, model.encoder_fingerprint("draw")])}
    place = arguments.work / "work" / phase
    weight = experiment.pretrain.binding.get(phase, 0.0)
    values = pretraining_of(config.family).attention_values
    with bound(values, model, weight, experiment.pretrain.contrast):
        done = align(model, data, recipe, seed=arguments.seed, work_dir=place, identity=identity)
    row = {
        "base": arguments.experiment,
        "phase": phase,
        "seed": arguments.seed,
        "changes": arguments.overrides,
        "commit": _commit(),
        "cpu_seconds": round(time.process_time() - started, 1),
        "loss": {task: round(value or 0.0, 3) for task, value in done.loss.items()},
    }
    row["questions"] = question_scores(model)
    row["bridge"] = bridge(model)
    if "t2i" in recipe.active():
        row |= scores(model, config.sampler, arguments.levels, arguments.prompts)
    if "edit" in recipe.active():
        row["edits"] = edit_scores(model, config.sampler)
    shutil.rmtree(unfinished := after.with_suffix(".unfinished"), ignore_errors=True)
    model.save(unfinished)
    _record(row, arguments.record)
    unfinished.rename(after)


def train_arm(arguments: argparse.Namespace) -> None:
    """One arm from a base, and its row."""
    experiment = load(arguments.experiment, arguments.overrides)
    ((_, config),) = experiment.models.items()
    with tempfile.TemporaryDirectory() as place:  # the base with the options of this experiment
        make_base(config.family, config.network, Path(place) / "base", folder=arguments.base)
        model = placed(load_model(Path(place) / "base"))
    started = time.process_time()
    row: dict[str, Any] = {
        "arm": arguments.arm,
        "seed": arguments.seed,
        "base": "/".join(arguments.base.parts[-2:]),
        "changes": arguments.overrides,
        "commit": _commit(),
    }
    if arguments.arm != "base":
        assert config.align is not None
        recipe = replace(for_arm(config.align, arguments.arm), checkpoint_every=0)
        folders = _worlds(experiment, arguments.data)
        root = arguments.data / "cache" / sha256_json(str(arguments.base))[:8]
        caches = encoded(model, experiment.data, folders, root, "search")
        data = feature_data(recipe, experiment.data, folders, caches, seed=arguments.seed, ranks=1)
        identity = {"model": str(arguments.base)}
        with tempfile.TemporaryDirectory() as place:
            done = align(
                model, data, recipe, seed=arguments.seed, work_dir=Path(place), identity=identity
            )
            steps = [json.loads(line) for line in (Path(place) / LOG).read_text().splitlines()]
        row["fall"] = round(fall(steps) or 0.0, 3)  # flat: at most .03 (docs/laptop_protocol.md, 5)
        row["loss"] = {task: round(value or 0.0, 3) for task, value in done.loss.items()}
        if arguments.save:
            model.save(arguments.save)
    else:
        row["bridge"] = bridge(model)
    row["cpu_seconds"] = round(time.process_time() - started, 1)
    row |= scores(model, config.sampler, arguments.levels, arguments.prompts)
    if any(section.kind == "laptop_edit" for section in experiment.benchmarks.values()):
        row["edits"] = edit_scores(model, config.sampler)
    _record(row, arguments.record)


def _commit() -> str:
    called = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(called, capture_output=True, text=True, check=False).stdout.strip()


def _record(row: Mapping[str, Any], file: Path | None) -> None:
    line = json.dumps(row)
    print(line, flush=True)
    if file is not None:
        with file.open("a") as handle:
            handle.write(line + "\n")


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("base", "arm"))
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("work/search/data"))
    parser.add_argument("--work", type=Path, help="base: folder of its parts and phases")
    parser.add_argument("--until", help="base: the first phase to leave out")
    parser.add_argument("--base", type=Path, help="arm: folder of the model to start from")
    parser.add_argument("--arm", default="base", choices=("base", "reca", "sft", "shuffled"))
    parser.add_argument("--save", type=Path, help="arm: where to write the trained model")
    parser.add_argument("--levels", type=float, nargs="+", default=[2.0, 3.0, 5.0, 8.0])
    parser.add_argument("--prompts", type=int, default=30, help="development prompts per task")
    parser.add_argument("--record", type=Path, help="file that gets the row, as JSON lines")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    {"base": train_base, "arm": train_arm}[arguments.what](arguments)


if __name__ == "__main__":
    main()
