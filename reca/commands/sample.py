"""sample: a model's images and answers for a benchmark, or for one shard of it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.commands.code import stage_code
from reca.commands.inputs import of_section, pairs, read_section, records_of, roles, work_folder
from reca.config.compose import section
from reca.config.schema import BenchmarkConfig, Sampler
from reca.core.artifacts import Stage, read_json, read_manifest, sha256_json
from reca.core.documents import fields
from reca.evaluation.choose import arm_of, requested

if TYPE_CHECKING:
    from reca.models.contract import UnifiedModel


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that is loaded once, when first needed."""

    path: Path
    device: str = "auto"

    @cached_property
    def model(self) -> UnifiedModel:
        """The loaded model."""
        from reca.core.devices import placed
        from reca.models.registry import load_model

        return placed(load_model(self.path), self.device)


@dataclass(frozen=True)
class Request:
    """The arguments of `reca sample` besides its section. `guidance`: the file written by `reca choose`."""

    seed: int
    split: str = "test"
    guidance: Path | None = None
    shard: tuple[int, int] = (0, 1)
    sources: Mapping[str, Path] = field(default_factory=dict)


def sample(arguments: Namespace) -> None:
    """Sample one shard of a benchmark with one model."""
    request = Request(
        arguments.seed,
        arguments.split,
        Path(arguments.guidance) if arguments.guidance else None,
        shard_of(arguments.shard),
        pairs("--source", arguments.source),
    )
    model = ModelFolder(Path(arguments.model), arguments.device)
    sample_stage(arguments, read_section(arguments.section), model, request)


def sample_stage(
    places: Namespace,
    plain: Mapping[str, Any],
    folder: ModelFolder,
    request: Request,
    *,
    again: bool = True,
) -> None:
    """Write the samples to `places.out`, with unfinished work in `places.work`.

    Without `again`, samples of the same configuration and code are kept, without loading the model.
    """
    family, drawn, run, described = of_section(plain, "family", "sampler", "run", "benchmark")
    benchmark, sampler = section(BenchmarkConfig, described), section(Sampler, drawn)
    code = stage_code("sample", family, benchmark.kind)
    read = {"model": folder.path, **roles(request.sources)}
    stage = Stage(
        "sample",
        places.out,
        inputs=records_of(read) | _chosen(request.guidance),
        section={**plain, "split": request.split, "shard": list(request.shard)},
        seed=request.seed,
        code=code,
        reads=read.values(),
        former=("generate", "draw"),
    )
    guidance = _guidance(request.guidance, run, benchmark)
    if not again and stage.is_current():
        return
    from reca.evaluation.sample import sample as sample_shard
    from reca.inference.generate import Origin

    with work_folder(places, "sample", read.values()) as work, stage:
        per_image = benchmark.seed_schedule == "per_image"
        origin = Origin(
            sha256_json(read_manifest(folder.path)["outputs"]),
            benchmark.kind,
            request.seed if per_image else benchmark.seed,
            code,
            benchmark.seed_schedule,
            request.shard,
        )
        counts = sample_shard(
            folder.model,
            benchmark,
            sampler,
            origin,
            request.sources,
            run=run,
            split=request.split,
            guidance=guidance,
            work=work.path,
            out=stage.staging,
        )
        stage.note(**counts)


def shard_of(text: str) -> tuple[int, int]:
    """Parse a shard: (2, 8) for `2/8`; ValueError if malformed."""
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        index, count = -1, 0
    if not 0 <= index < count:
        raise ValueError(f"--shard {text!r}: write I/N with 0 <= I < N, for example 0/8")
    return index, count


def _chosen(file: Path | None) -> dict[str, Path]:
    """The input is the chosen guidance, not its manifest: scores that lead to the same choice do not rerun sampling."""
    if file is None:
        return {}
    records_of({"guidance": file.parent})  # verifies the file if a stage wrote it
    return {"guidance": file}


def _guidance(file: Path | None, run: str, benchmark: BenchmarkConfig) -> dict[str, float] | None:
    """The guidance levels for the arm of this run by name; None to use the configured levels."""
    if file is None:
        return None
    at_base, curve = benchmark.base_guidance, benchmark.curve_prompts > 0
    choice = fields(read_json(file), file, chosen=dict, **({"levels": list} if curve else {}))
    for arm in (arm_of(run), *(["base"] if at_base else [])):
        if arm not in choice["chosen"]:
            raise ValueError(
                f"{file}: no guidance for arm {arm!r}, only for {sorted(choice['chosen'])}; run `reca choose` with its "
                "scores"
            )
    return requested(choice, arm_of(run), at_base=at_base, curve=curve)
