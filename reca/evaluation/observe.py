"""The examination: networks and judges look at pictures, and what they say becomes `evidence.jsonl`.

Rows are kept in the work folder as they come, so a killed run resumes at the next picture. Scoring
reads the rows; it never needs a network again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.artifacts import sha256_bytes, sha256_json, write_atomic, write_json, write_lines
from reca.core.finite import demand_numbers, named
from reca.core.images import decode
from reca.evaluation import registry
from reca.evaluation.pictures import Cropped
from reca.inference.items import Prompt
from reca.inference.resume import ResumableRows

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig
    from reca.evaluation.judges.collect import Judge

EVIDENCE, FEATURES, LEDGER = "evidence.jsonl", "features.safetensors", "ledger.jsonl"
Key = tuple[str, int]
Row = dict[str, Any]
_log = logging.getLogger(__name__)


def device() -> str:
    """The first GPU where there is one."""
    from reca.core.devices import device_of

    return str(device_of())


# ---- rows that survive a kill ------------------------------------------------------------------------
def seen(
    resume: ResumableRows,
    items: Sequence[Prompt],
    pictures: Mapping[Key, bytes],
    samples: int,
    look: Callable[[Prompt, int, bytes], list[Row]],
    determinants: Any,
) -> Iterator[Row]:
    """Rows of every picture there is, in the order of the prompts."""
    fixed = sha256_json(determinants)
    todo = [(item, k) for item in items for k in range(samples) if (item.id, k) in pictures]
    for number, (item, k) in enumerate(todo, 1):
        data = pictures[item.id, k]
        key = f"{item.id}/{k}/{sha256_bytes(data)}/{fixed}"
        with named([f"{item.id}/{k}"]):
            rows = resume.of(key, lambda item=item, k=k, data=data: look(item, k, data))  # type: ignore[misc]
        yield from rows
        if number % 50 == 0 or number == len(todo):
            _log.info("%d of %d pictures examined", number, len(todo))


# ---- one examination per kind of evidence ------------------------------------------------------------
def examine(
    benchmark: BenchmarkConfig,
    items: Sequence[Prompt],
    pictures: Mapping[Key, bytes],
    data: Mapping[str, Path],
    *,
    samples: int,
    work: Path,
    out: Path,
    ledger: Path,
    sources: Mapping[str, bytes] | None = None,
    asked: Sequence[Any] = (),
    answers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write `evidence.jsonl` (and the ledger of a judge) to `out`; gives facts for the record.

    `pictures` by (prompt id, sample), `sources` the pictures before an edit, `answers` a model's answers.
    ValueError where a network's folder or the judge is missing.
    """
    kind = registry.kind(benchmark.kind)
    out.mkdir(parents=True, exist_ok=True)
    if benchmark.crop_black:
        if kind.needs not in ("draw", "edit"):
            raise ValueError(
                f"benchmarks.{benchmark.kind}.crop_black: there are no pictures to crop"
            )
        cropped = Cropped(pictures)
        facts = examine(
            replace(benchmark, crop_black=False), items, cropped, data, samples=samples,
            work=work, out=out, ledger=ledger, sources=sources,
        )  # fmt: skip
        return {**facts, "cropped": len(cropped.changed)}
    if kind.evidence == "judge":
        return _judged(benchmark, items, pictures, data, out, ledger, sources, asked, answers)
    resume = ResumableRows(work / EVIDENCE)
    makers = {"detector": _detected, "vqa": _answered, "similarity": _compared}
    rows = makers[kind.evidence](
        benchmark, items, pictures, data, samples, resume, out, sources or {}
    )
    return {"evidence": write_lines(out / EVIDENCE, rows)}


def _source(data: Mapping[str, Path], role: str, benchmark: str) -> Path:
    if role not in data:
        raise ValueError(f"{benchmark}: no folder for role {role!r}; give --source {role}=DIR")
    return data[role]


def _detected(
    benchmark: BenchmarkConfig,
    items: Sequence[Prompt],
    pictures: Mapping[Key, bytes],
    data: Mapping[str, Path],
    samples: int,
    resume: ResumableRows,
    out: Path,
    sources: Mapping[str, bytes],
) -> Iterator[Row]:
    from reca.evaluation.detectors.mask2former import ClipColours, GenevalEye, Mask2Former
    from reca.evaluation.tasks import geneval

    scorer, names = benchmark.scorer or "hf-detector", geneval.object_names(data)
    if scorer not in ("hf-detector", "mmdet-weights"):
        raise ValueError(f"geneval scorer {scorer!r}: must be hf-detector or mmdet-weights")
    folder, official = _source(data, "detector", "geneval"), scorer == "mmdet-weights"
    eye = GenevalEye(
        Mask2Former.open(folder, names, device(), official),
        ClipColours(_source(data, "clip", "geneval"), device()),
        names,
    )

    def look(item: Prompt, k: int, picture: bytes) -> list[Row]:
        image = decode(picture, name=geneval.official_name(item, k))
        return [{"id": item.id, "sample": k, "detections": eye(image, item.facts)}]

    return seen(resume, items, pictures, samples, look, [scorer, identity(folder)])


def identity(folder: Path) -> Any:
    """What tells one network's files from another's: the record that fetching left, else names and sizes."""
    record = folder / "manifest.json"
    if record.is_file():
        return sha256_bytes(record.read_bytes())
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)


def _answered(
    benchmark: BenchmarkConfig,
    items: Sequence[Prompt],
    pictures: Mapping[Key, bytes],
    data: Mapping[str, Path],
    samples: int,
    resume: ResumableRows,
    out: Path,
    sources: Mapping[str, bytes],
) -> Iterator[Row]:
    from reca.evaluation.detectors import vqa
    from reca.evaluation.tasks import dpg

    scorer = benchmark.scorer or "blip-vqa"
    questions = dpg.by_item(dpg.questions(data))
    if scorer.startswith("file:"):  # file:<name>, answers.jsonl in the folder of role `answers`
        return _from_file(items, questions, pictures, samples, _source(data, "answers", "dpg"))
    folder = _source(data, "vqa", "dpg")
    answerer = (
        vqa.BlipVqa(folder, device()) if scorer == "blip-vqa" else vqa.ChatModel(folder, device())
    )

    def look(item: Prompt, k: int, picture: bytes) -> list[Row]:
        own = questions.get(item.id, [])
        image = decode(picture, name=dpg.official_name(item, k))
        said = answerer(image, [row["question_natural_language"] for row in own])
        return [
            {"id": item.id, "sample": k, "question": row["proposition_id"], "answer": answer}
            for row, answer in zip(own, said, strict=True)
        ]

    return seen(resume, items, pictures, samples, look, [scorer, identity(folder)])


def _from_file(
    items: Sequence[Prompt],
    questions: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures: Mapping[Key, bytes],
    samples: int,
    folder: Path,
) -> Iterator[Row]:
    """Answers that another environment wrote; its questions are written beside where they lack."""
    from reca.evaluation.detectors import vqa
    from reca.evaluation.tasks import dpg

    asked = [
        {"id": i.id, "sample": k, "question": row["proposition_id"],
         "text": row["question_natural_language"], "image": dpg.official_name(i, k)}
        for i in items
        for k in range(samples)
        if (i.id, k) in pictures
        for row in questions.get(i.id, ())
    ]  # fmt: skip
    answers = folder / "answers.jsonl"
    if not answers.is_file():
        vqa.write_questions(folder / "questions.jsonl", asked)
        for item in items:
            for k in range(samples):
                if (item.id, k) in pictures:
                    _add(folder / dpg.official_name(item, k), pictures[item.id, k])
        raise ValueError(
            f"{folder}: questions.jsonl and the pictures are written; answer them there with the scorer "
            "of your choice as answers.jsonl, and run this again"
        )
    return vqa.read_answers(answers, [(r["id"], r["sample"], r["question"]) for r in asked])


def _add(path: Path, picture: bytes) -> None:
    """Write a picture; ValueError where another one has its name: the folder may hold the user's own."""
    if path.exists() and path.read_bytes() != picture:
        raise ValueError(
            f"{path}: is another picture than the one to ask about; name an empty folder of answers"
        )
    write_atomic(path, picture)


def _compared(
    benchmark: BenchmarkConfig,
    items: Sequence[Prompt],
    pictures: Mapping[Key, bytes],
    data: Mapping[str, Path],
    samples: int,
    resume: ResumableRows,
    out: Path,
    sources: Mapping[str, bytes],
) -> Iterator[Row]:
    import numpy as np
    import torch

    from reca.evaluation.detectors.similarity import Alike
    from reca.evaluation.tasks import reconstruction
    from reca.models.checkpoint_io import save_safetensors

    measures: dict[str, Alike] = _measures(data)
    inception = _inception(data)
    features: dict[str, list[Any]] = {"true": [], "redrawn": []}

    def look(item: Prompt, k: int, picture: bytes) -> list[Row]:
        again = decode(picture, name=item.id)
        truth = decode(sources[item.id], name=item.id).resize(again.size)
        row: Row = {"id": item.id}
        row |= {name: measure(truth, again) for name, measure in measures.items()}
        demand_numbers({f"values of {name}": row[name] for name in measures})
        arrays = [np.asarray(image.convert("RGB")) for image in (truth, again)]
        row |= {"psnr": reconstruction.psnr(*arrays), "ssim": reconstruction.ssim(*arrays)}
        if inception is not None:
            row["features"] = [inception(image).tolist() for image in (truth, again)]
            demand_numbers({"Inception features": sum(map(sum, row["features"]))})
        return [row]

    networks = {role: identity(folder) for role, folder in data.items() if role != "images"}
    for row in seen(resume, items, pictures, 1, look, networks):
        if "features" in row:
            for name, values in zip(features, row["features"], strict=True):
                features[name].append(values)
        yield {name: value for name, value in row.items() if name != "features"}
    if inception is not None:
        tensors = {name: torch.tensor(rows) for name, rows in features.items()}
        save_safetensors(tensors, out / FEATURES)


def _measures(data: Mapping[str, Path]) -> dict[str, Any]:
    """The networks whose folders are there: each is optional."""
    from reca.evaluation.detectors.mask2former import pinned_file
    from reca.evaluation.detectors.similarity import CosineAlike, Lpips, LpipsAlike

    found: dict[str, Any] = {}
    if "alexnet" in data and "lpips" in data:
        files = pinned_file(data["alexnet"], "*.pth"), pinned_file(data["lpips"], "*.pth")
        found["lpips"] = LpipsAlike(Lpips.open(*files), device())
    if "clip" in data:
        found["clip"] = CosineAlike.clip(data["clip"], device())
    if "dino" in data:
        found["dino"] = CosineAlike.dino(data["dino"], device())
    return found


def _inception(data: Mapping[str, Path]) -> Any:
    from reca.evaluation.detectors.inception import InceptionFeatures
    from reca.evaluation.detectors.mask2former import pinned_file

    if "inception" not in data:
        return None
    return InceptionFeatures.open(*pinned_file(data["inception"], "*.pth"), device())


# ---- judges ------------------------------------------------------------------------------------------
def _judged(
    benchmark: BenchmarkConfig,
    items: Sequence[Prompt],
    pictures: Mapping[Key, bytes],
    data: Mapping[str, Path],
    out: Path,
    ledger: Path,
    sources: Mapping[str, bytes] | None,
    asked: Sequence[Any],
    answers: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Send the judge what its ledger does not have; the evidence is the outcome of every request."""
    from reca.evaluation.judges.collect import collect, verdicts
    from reca.evaluation.judges.ledger import Ledger, totals

    module = registry.module(benchmark.kind)
    judge = open_judge(benchmark, data)
    if benchmark.kind == "mmvet":
        requests = module.requests(asked, answers or {}, data)
    elif sources is not None:
        requests = module.requests(items, pictures, data, sources)
    else:
        requests = module.requests(items, pictures, data)
    readable = _reader(module)
    with Ledger(ledger) as book:
        counts = collect(
            requests,
            judge,
            book,
            benchmark=benchmark.kind,
            version=module.VERSION,
            readable=readable,
        )
        fixed = judge.determinants(benchmark.kind, module.VERSION)
        attempts = judge.config.attempts
        found = verdicts(requests, fixed, book, attempts=attempts, readable=readable)
        summed = totals(book)
    rows = [{"id": name, "status": s, "reply": reply} for name, (s, reply) in found.items()]
    write_lines(out / EVIDENCE, rows)
    shutil.copyfile(ledger, out / LEDGER)
    card = {"determinants": fixed, "totals": summed, "encoding": "as the official script sends"}
    write_json(out / "judge.json", card)
    return {**counts, **summed}


def _reader(module: Any) -> Callable[[str], bool]:
    """Whether a reply gives a score by the benchmark's own reading."""
    score = module.scores if hasattr(module, "scores") else module.score
    return lambda reply: score(reply) is not None


def open_judge(benchmark: BenchmarkConfig, data: Mapping[str, Path]) -> Judge:
    """The configured judge, with the benchmark's own temperature and length where the configuration is silent."""
    config = benchmark.judge
    if config is None:
        raise ValueError(f"{benchmark.kind}: no judge is configured; set benchmarks.<name>.judge")
    limits = registry.module(benchmark.kind).JUDGE_LIMITS
    own = {name: value for name, value in limits.items() if asdict(config)[name] is None}
    config = replace(config, **own)
    if config.kind == "transformers":
        from reca.evaluation.detectors.local_judge import LocalJudge

        return LocalJudge(config, _source(data, "judge_model", benchmark.kind), device())
    from reca.evaluation.judges.endpoint import Endpoint

    return Endpoint(config)
