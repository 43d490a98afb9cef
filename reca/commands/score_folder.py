"""`reca score BENCHMARK FOLDER`: score any folder of images in the official layout."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reca.commands.code import stage_code
from reca.commands.inputs import pairs, read_section
from reca.config.compose import section
from reca.config.schema import BenchmarkConfig, JudgeConfig
from reca.core.documents import json_object, read_json
from reca.core.ownership import WorkFolder, check_file, check_place, is_work
from reca.evaluation import readings, registry

SOURCES = {
    "geneval": {"prompts": "geneval", "detector": "mask2former-swin-small-coco", "clip": "clip-vit-large-patch14"},
    "dpg": {"prompts": "dpg", "questions": "dpg-questions", "vqa": "blip-vqa"},
    "wise": {"prompts": "wise", "judge": "wise-judge"},
    "t2i_compbench": {"prompts": "t2i-compbench", "judge": "t2i-compbench-judge"},
    "imgedit": {"prompts": "imgedit", "images": "imgedit-images"},
    "gedit": {"prompts": "gedit-bench", "judge": "gedit-judge"},
}  # fmt: skip


def score_folder(arguments: Namespace) -> None:
    """Score a folder of images in the official layout; prints the summary and the missing files.

    Names are matched strictly. `--list` only lists missing and unknown files. `--evidence DIR` scores the observations
    of an earlier run, without networks or judges.
    """
    from reca.evaluation import pictures as found_in
    from reca.evaluation.benchmark_data import items_of
    from reca.evaluation.observe import observe, sources_of
    from reca.evaluation.observers.view import View
    from reca.evaluation.score import graded, write
    from reca.evaluation.together import cards_of, demand_images, scorer_of

    kind, folder = arguments.benchmark, Path(arguments.folder)
    out = Path(arguments.out or f"{folder.name}-{kind}-scores")
    if not arguments.list:
        _check_scores(out, folder)
    if kind not in SOURCES:
        registry.kind(kind)
        raise ValueError(
            f"{kind}: has no official layout of images, so it cannot score a folder (see docs/benchmarks.md)"
        )
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images; name the folder to score")
    sources = _sources(kind, arguments)
    items, module = items_of(kind, sources), registry.module(kind)
    if hasattr(module, "check_folder"):
        module.check_folder(folder, items)
    grid = getattr(module, "grid_name", None)
    if grid and found_in.is_grid(folder, items, module.official_name, grid):
        samples = arguments.images or found_in.TILES
        pictures, missing, foreign = found_in.of_grids(folder, items, samples, grid)
        expected, files = len(items), len(items) - len(missing)
        print(f"{kind}: {files} of {expected} grids, {samples} images each, in {folder}")
    else:
        samples = arguments.images or found_in.samples_in(folder, items, module.official_name)
        pictures, missing, foreign = found_in.of_folder(
            folder, items, samples, module.official_name
        )
        expected = len(items) * samples
        print(f"{kind}: {len(pictures)} of {expected} images ({samples} per prompt) in {folder}")
    if arguments.list:
        for name in missing:
            print(f"missing  {name}")
        for name in foreign:
            print(f"unknown  {name}")
        return
    for line in found_in.demand(folder, missing, foreign, expected, arguments.partial):
        print(line)
    benchmark = _benchmark(kind, samples, arguments)
    evidence = _evidence(arguments.evidence) or out / "evidence"
    if arguments.evidence:
        demand_images(evidence, found_in.Cropped(pictures) if benchmark.crop_black else pictures)
    else:
        WorkFolder(out / "work", "score").claim()
        there = [item for item in items if any((item.id, k) in pictures for k in range(samples))]
        places = (out / "work", evidence, out / "ledger.jsonl")
        before, code = sources_of(kind, there, sources), stage_code("observe", benchmark=kind)
        observe(View(benchmark, there, pictures, sources, samples, *places, before, code=code))
    benchmark = replace(benchmark, scorer=scorer_of([evidence], benchmark.scorer))
    found = graded(benchmark, sources, [evidence], [], samples)
    unknown = dict.fromkeys(("seed", "guidance", "chosen", "seed_schedule"))
    described = {"run": folder.name, "split": "test", **unknown}
    result = write(benchmark, found, out, described, cards_of([evidence]))
    print(summary_text(result))
    print(f"written: {out / 'scores.json'}")


def _check_scores(out: Path, folder: Path) -> None:
    """ValueError if the output folder is the image folder, or contains anything but the output of an earlier run."""
    check_place("--out", out, [folder])
    written = {"work", "evidence", "ledger.jsonl", "items.jsonl", "scores.json"}
    for entry in sorted(out.iterdir()) if out.is_dir() else ():
        if entry.name not in written:
            raise ValueError(
                f"--out {out}: contains {entry.name}, which `reca score` did not write; give another folder"
            )
    check_file("--out", out / "scores.json", _is_scores)
    found = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    if found and not (_is_scores(out / "scores.json") or is_work(out / "work")):
        raise ValueError(
            f"--out {out}: contains {found[0]}, but no sign of an earlier run; give another folder"
        )


def _is_scores(path: Path) -> bool:
    try:
        found = read_json(path)
    except ValueError:
        return False
    return isinstance(found, dict) and {"coverage", "summary"} <= found.keys()


def _evidence(given: Sequence[str] | None) -> Path | None:
    if given and len(given) > 1:
        raise ValueError(
            f"--evidence {' '.join(given)}: a folder of images has one folder of evidence; give one"
        )
    return Path(given[0]) if given else None


def _sources(kind: str, arguments: Namespace) -> dict[str, Path]:
    """Folders by role: as given, else `data/<source>`; ValueError if prompts or questions are missing."""
    named = pairs("--source", arguments.source)
    found = {role: Path("data") / name for role, name in SOURCES[kind].items()} | named
    lacking = {r: f for r, f in found.items() if r in ("prompts", "questions") and not f.is_dir()}
    for role, folder in lacking.items():
        source = SOURCES[kind].get(role, role)
        raise ValueError(
            f"{folder}: no such folder; run `reca fetch {source} --out {folder}`, or give --source "
            f"{role}=DIR"
        )
    return found


def _benchmark(kind: str, samples: int, arguments: Namespace) -> BenchmarkConfig:
    options = json_object(arguments.options, "--options") if arguments.options else {}
    if arguments.partial:
        options["partial"] = True
    judge = section(JudgeConfig, read_section(arguments.judge)) if arguments.judge else None
    made = BenchmarkConfig(kind=kind, images_per_prompt=samples, options=options, judge=judge)  # type: ignore[arg-type]
    crop = bool(options.pop("crop_black", False))  # applied to the images before observation
    return replace(made, scorer=arguments.scorer, crop_black=crop)


def summary_text(result: Mapping[str, Any]) -> str:
    """The summary as text: coverage first, then every number with its interval."""
    cover = result["coverage"]
    lines = [f"{result['label']}, version {result['version']}"]
    said = f"coverage {cover['scored']} of {cover['expected']}"
    reasons = [
        f"{cover[n]} {n}" for n in ("missing", "failed", "refused", "unparsable") if cover[n]
    ]
    lines.append(said + (f" ({', '.join(reasons)})" if reasons else ""))
    if doubtful := readings.text(readings.counts(result)):
        lines.append(f"replies: {doubtful} (ids in scores.json, readings)")
    if result["partial"]:
        lines.append("PARTIAL: not comparable with a full run")
    for name, value in result["summary"].items():
        limits = result["intervals"].get(name)
        shown = "-" if value is None else f"{value:.4f}"
        lines.append(
            f"  {name:<32} {shown}" + (f"  [{limits[0]:.4f}, {limits[1]:.4f}]" if limits else "")
        )
    return "\n".join(lines)
