"""Builds a cache of frozen features, under a key that covers everything that affects them.

A cache is complete or absent: shards are finished one by one in a work folder and published
together. A killed build resumes, an extended data set encodes only its new images, and processes
that build the same cache share the work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from reca.core import artifacts
from reca.core.atomic import disk_errors
from reca.core.finite import demand, finite_rows, named
from reca.core.unreadable import UnreadableSample
from reca.data.dataset import MAX_UNREADABLE, Corrupt, Dataset, described, read_images
from reca.data.order import Visits
from reca.data.prefetch import in_order
from reca.features.store import ABOUT, COLUMNS, INDEX, FeatureCache, open_cache
from reca.features.workshop import Workshop

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.models.contract import Features, UnifiedModel, Use

__all__ = ["FeatureCache", "Precision", "build", "open_cache"]

FORMAT = 1
SHARD_BYTES = 256 * 2**20
SHARD_ROWS = 4096  # limits the work lost by a kill if rows are small
Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

_log = logging.getLogger(__name__)


# ---- plan: images and their keys -----------------------------------------------------------------
@dataclass(frozen=True)
class Shard:
    """A range of distinct images: their hashes, and a position in the data set of each."""

    key: str
    images: tuple[str, ...]
    positions: tuple[int, ...]


@dataclass
class Plan:
    """The plan of a cache before any encoding: what it covers, its samples in order, its shards."""

    covers: dict[str, Any]
    shard_bytes: int
    visits: Visits | None = None  # None: all samples
    size: int = 0  # samples of the data set
    samples: list[tuple[int, str, str]] = field(default_factory=list)  # position, id, image hash
    first: dict[str, int] = field(default_factory=dict)  # image hash -> its first row
    without_image: int = 0
    left_out: dict[str, Any] = field(default_factory=dict)
    unreadable: list[dict[str, Any]] = field(default_factory=list)
    shard_rows: int = 0
    shards: list[Shard] = field(default_factory=list)

    def read(self, dataset: Dataset, tally: Corrupt, workers: int) -> None:
        """Hash every image; whatever the reader or this loop skips is recorded."""
        self.left_out, self.size = described(dataset.left_out), len(dataset)
        positions = range(self.size) if self.visits is None else self.visits.of(self.size)
        found = in_order(partial(_hashed, dataset), iter(positions), workers)
        for position, sample in zip(positions, found, strict=True):
            if isinstance(sample, UnreadableSample):
                tally.add(sample)
                self.unreadable.append(_left_out(sample.name, position, sample.reason))
                continue
            name, digest = sample
            if digest is None:
                self.without_image += 1
                continue
            self.samples.append((position, name, digest))
            self.first.setdefault(digest, position)

    def divide(self, shard_rows: int) -> None:
        """Split the distinct images into shards, each with its own key."""
        self.shard_rows, images = shard_rows, list(self.first)
        for start in range(0, len(images), shard_rows):
            chosen = tuple(images[start : start + shard_rows])
            key = artifacts.sha256_json([self.covers, chosen])
            self.shards.append(Shard(key, chosen, tuple(self.first[image] for image in chosen)))

    @property
    def key(self) -> str:
        """The key of the cache."""
        shards = [shard.key for shard in self.shards]
        read = [asdict(self.visits), self.size] if self.visits else []
        return artifacts.sha256_json([self.covers, shards, self.samples, self.unreadable, *read])


def _hashed(dataset: Dataset, position: int) -> tuple[str, str | None] | UnreadableSample:
    """Id of a sample and the hash of its image, if it has one."""
    try:
        sample = dataset[position]
    except UnreadableSample as fault:
        return fault
    return sample.id, None if sample.image is None else artifacts.sha256_bytes(sample.image)


def _left_out(name: str, position: int, reason: str) -> dict[str, Any]:
    return {"id": name, "position": position, "reason": reason}


def _covers(
    model: UnifiedModel, use: Use, dtype: Precision, code: str, jpeg_side: int | None
) -> dict[str, Any]:
    """Everything that a row depends on besides its image; the fingerprint covers weights and preprocessing."""
    if dtype not in PRECISIONS:
        raise ValueError(
            f"cache dtype {dtype!r} is not known; choose one of {', '.join(PRECISIONS)}"
        )
    encoder = model.encoder_fingerprint(use)
    covers = {"format": FORMAT, "encoder": encoder, "use": use, "dtype": dtype, "code": code}
    return covers if jpeg_side is None else covers | {"jpeg_side": jpeg_side}


# ---- encoding ------------------------------------------------------------------------------------
@dataclass
class Encoder:
    """One process's share in building a cache."""

    model: UnifiedModel
    dataset: Dataset
    use: Use
    precision: torch.dtype
    batch_size: int
    workers: int
    tally: Corrupt
    jpeg_side: int | None = None

    def encode(self, images: Sequence[Image], names: Sequence[str]) -> Features:
        """One batch on the CPU, floats in the cache's precision; NonFinite names images without finite features."""
        return self.fetched(self.begun(images), names)

    def begun(self, images: Sequence[Image]) -> Features:
        """Features of one batch, which a GPU may still be computing, floats in the cache's precision."""
        features = self.model.encode(images, self.use)
        for name, tensor in features.items():
            if len(tensor) != len(images):
                rows = f"{len(tensor)} rows of {name!r} for {len(images)} images"
                raise ValueError(f"{self.model.family}: encode gave {rows}")
        return {
            name: (rows.to(self.precision) if rows.is_floating_point() else rows).detach()
            for name, rows in features.items()
        }

    def fetched(self, features: Features, names: Sequence[str]) -> Features:
        """The features on the CPU, for which the host waits; NonFinite names images without finite ones."""
        kept = {name: rows.cpu() for name, rows in features.items()}
        for name, tensor in kept.items():
            if tensor.is_floating_point() and tensor.numel():
                with named(names):
                    demand(finite_rows(tensor), f"features {name} in {str(tensor.dtype)[6:]}")
        return kept

    def shard_rows(self, plan: Plan) -> int:
        """Number of rows per shard, from the row size of the first readable image."""
        ignored = Corrupt(len(plan.first), max_fraction=1.0)
        first = list(plan.first.values())
        read = read_images(self.dataset, first, tally=ignored, jpeg_side=self.jpeg_side)
        for _, sample, image in read:
            row_bytes = sum(tensor.nbytes for tensor in self.encode([image], [sample.id]).values())
            return min(SHARD_ROWS, max(1, plan.shard_bytes // max(1, row_bytes)))
        raise ValueError("no readable image in the data set, so there is nothing to cache")

    def shard(self, shard: Shard) -> tuple[Features, dict[str, Any]]:
        """Features of a shard's readable images, and the hashes of these images."""
        started, before = time.monotonic(), len(self.tally.bad)
        read = read_images(
            self.dataset,
            shard.positions,
            tally=self.tally,
            workers=self.workers,
            ahead=self.batch_size,
            jpeg_side=self.jpeg_side,
        )
        kept: list[int] = []
        parts: list[Features] = []
        waiting: tuple[Features, list[str]] | None = None
        for batch in iter(lambda: list(islice(read, self.batch_size)), []):
            kept.extend(position for position, _, _ in batch)
            # the host prepares this batch while a GPU computes the one before
            begun = self.begun([image for _, _, image in batch])
            if waiting is not None:
                parts.append(self.fetched(*waiting))
            waiting = begun, [sample.id for _, sample, _ in batch]
        if waiting is not None:
            parts.append(self.fetched(*waiting))
        features = _joined(parts)
        rows = {position: row for row, position in enumerate(shard.positions)}
        faulty = [rows[position] for position in sorted(rows.keys() - kept, key=rows.__getitem__)]
        reasons = [reason for _, reason in self.tally.bad[before:]]
        return features, {
            "kept": [rows[position] for position in kept],
            "faults": {str(row): reason for row, reason in zip(faulty, reasons, strict=True)},
            "features": _forms(features),
            "seconds": time.monotonic() - started,
        }


def _joined(parts: Sequence[Features]) -> Features:
    """The features of several batches as one."""
    _common_form([_forms(part) for part in parts])
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _forms(features: Features) -> dict[str, Any]:
    return {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape[1:])}
        for name, tensor in sorted(features.items())
    }


def _finish_shards(
    encoder: Encoder,
    plan: Plan,
    workshop: Workshop,
    is_complete: Callable[[], bool],
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]] | None:
    """Finish all shards; those locked by another process are left to it and awaited at the end.

    Returns their records in order, or None as soon as another process has completed the cache.
    """
    done: dict[str, dict[str, Any]] = {}
    for wait in (False, True):
        for shard in plan.shards:
            if shard.key in done:
                continue
            with workshop.lock(shard.key, wait) as mine:
                if is_complete():
                    return None
                if mine:
                    record = workshop.finished(shard.key)
                    done[shard.key] = record or workshop.write(shard.key, *encoder.shard(shard))
                    progress(len(done), len(plan.shards))
    return [done[shard.key] for shard in plan.shards]


# ---- completing ----------------------------------------------------------------------------------
def _index(plan: Plan, records: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Columns of the index; unreadable samples are added to the plan's `unreadable`."""
    places: dict[str, tuple[int, int] | str] = {}
    for number, (shard, record) in enumerate(zip(plan.shards, records, strict=True)):
        places |= {shard.images[row]: (number, at) for at, row in enumerate(record["kept"])}
        places |= {shard.images[int(row)]: reason for row, reason in record["faults"].items()}
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for position, name, image in plan.samples:
        place = places[image]
        if isinstance(place, str):
            plan.unreadable.append(_left_out(name, position, place))
            continue
        for column, value in zip(columns.values(), (name, position, image, *place), strict=True):
            column.append(value)
    return columns


def _common_form(forms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Names, dtypes and shapes of the features, which all rows of a cache share; ValueError if they do not."""
    for form in forms:
        if form != forms[0]:
            raise ValueError(
                f"features of images of several shapes differ in size, which a cache does not hold: {forms[0]} and "
                f"{form}; give images of one shape, or leave out the task that reads them"
            )
    return forms[0] if forms else {}


def _write(plan: Plan, records: Sequence[dict[str, Any]], workshop: Workshop, folder: Path) -> None:
    """Assemble shards, index and description."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    key, shards = plan.key, []
    for number, record in enumerate(records):
        file = f"features-{number:05d}.safetensors"
        workshop.place(record["key"], folder / file)
        timeless = {name: value for name, value in record.items() if name != "seconds"}
        shards.append({"file": file, "record": timeless})
    columns = _index(plan, records)
    pq.write_table(pa.table(columns), folder / INDEX)
    about = {
        "covers": plan.covers,
        "key": key,
        "rows": len(columns["id"]),
        "shard_bytes": plan.shard_bytes,
        "shard_rows": plan.shard_rows,
        "features": _common_form([record["features"] for record in records if record["kept"]]),
        "shards": shards,
        "unreadable": plan.unreadable,
        "without_image": plan.without_image,
        "left_out": plan.left_out,
    }
    if plan.visits is not None:
        about |= {"visits": asdict(plan.visits), "size": plan.size}
    artifacts.write_json(folder / ABOUT, about)


def _complete(
    encoder: Encoder,
    plan: Plan,
    records: Sequence[dict[str, Any]],
    workshop: Workshop,
    stage: artifacts.Stage,
) -> None:
    """Create the stage, unless too many samples were unreadable in this or an earlier session."""
    total = Corrupt(encoder.tally.total, encoder.tally.max_fraction)
    for fault in plan.unreadable:
        total.add(UnreadableSample(fault["id"], fault["reason"]))
    for shard, record in zip(plan.shards, records, strict=True):
        for row, reason in record["faults"].items():
            total.add(UnreadableSample(shard.images[int(row)], reason))
    with stage:
        _write(plan, records, workshop, stage.staging)
        seconds = {record["key"]: record["seconds"] for record in records}
        stage.note(shard_seconds=seconds, encode_seconds=sum(seconds.values()))


# ---- hits ----------------------------------------------------------------------------------------
def _is_labelled(out: Path, key: str, described: Mapping[str, Any]) -> bool:
    """Whether `out` claims to be this cache with these inputs; shards are not hashed."""
    try:
        manifest = artifacts.read_manifest(out)
        same = all(manifest.get(name) == value for name, value in described.items())
        return same and artifacts.read_json(out / ABOUT)["key"] == key
    except (ValueError, LookupError, TypeError):
        return False


def _is_current(out: Path, key: str, described: Mapping[str, Any]) -> bool:
    """Whether `out` is exactly this cache, undamaged."""
    if not _is_labelled(out, key, described):
        return False
    try:
        artifacts.verify(out)
    except ValueError as problem:
        _log.warning("%s; the cache is rebuilt", problem)
        return False
    return True


def _known_shard_rows(out: Path, plan: Plan) -> int | None:
    """Rows per shard of an existing cache with the same coverage, so that a cache hit encodes nothing."""
    try:
        about = artifacts.read_json(artifacts.verified(out / ABOUT))
        same = about["covers"] == plan.covers and about["shard_bytes"] == plan.shard_bytes
        return max(1, int(about["shard_rows"])) if same else None
    except (ValueError, LookupError, TypeError):
        return None


def build(
    model: UnifiedModel,
    dataset: Dataset,
    out_dir: str | Path,
    *,
    use: Use,
    code: str,
    dtype: Precision = "fp32",
    batch_size: int = 64,
    shard_bytes: int = SHARD_BYTES,
    max_unreadable: float = MAX_UNREADABLE,
    jpeg_side: int | None = None,
    workers: int = 0,
    visits: Visits | None = None,
    work: str | Path | None = None,
    inputs: Mapping[str, str | Path] | None = None,
    reads: Iterable[str | Path] = (),
    section: Any = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FeatureCache:
    """Encode the images of `dataset`, each once, into a complete stage in `out_dir`; a cache hit does nothing.

    Args:
        model: its frozen encoders are run.
        dataset: samples without an image are skipped and counted.
        out_dir: the stage folder, with its manifest.
        use: why images are encoded, `draw`, `read` or `edit`.
        code: fingerprint of the encoding modules (`fingerprints.code_fingerprint`).
        dtype: precision of floating-point features; integers are kept exactly.
        batch_size: images per call of `encode`.
        shard_bytes: approximate size of a shard.
        max_unreadable: share of the samples whose image or text may be unreadable.
        jpeg_side: short side in pixels down to which JPEGs are decoded at a part of their size, by default none.
        workers: threads that read and decode.
        visits: the samples that are read at all, by default every one.
        work: folder for finished shards of an unfinished cache, by default a hidden folder next to
            `out_dir`; any number of processes may share it to build the same cache.
        inputs: the stage's inputs, by name.
        reads: folders that are read; none may contain `out_dir`.
        section: the stage's configuration.
        progress: called with the number of finished shards and of all shards.

    Raises:
        ValueError: too many unreadable images, no space, or a folder that cannot be written.
    """
    out = Path(out_dir)
    workshop = Workshop(Path(work) if work is not None else out.parent / f".{out.name}.work")
    plan = Plan(_covers(model, use, dtype, code, jpeg_side), shard_bytes, visits)
    read = len(dataset) if visits is None else len(visits.of(len(dataset)))
    tally = Corrupt(read, max_unreadable)
    encoder = Encoder(model, dataset, use, PRECISIONS[dtype], batch_size, workers, tally, jpeg_side)
    stage = artifacts.Stage(
        "cache", out, inputs=inputs or {}, section=section, code=code, reads=reads
    )
    with disk_errors(out, "build the cache"), workshop.in_use():
        _build(encoder, plan, workshop, stage, progress)
    return open_cache(out)


def _build(
    encoder: Encoder,
    plan: Plan,
    workshop: Workshop,
    stage: artifacts.Stage,
    progress: Callable[[int, int], None],
) -> None:
    out, described = stage.out, stage.described
    plan.read(encoder.dataset, encoder.tally, encoder.workers)
    plan.divide(_known_shard_rows(out, plan) or encoder.shard_rows(plan))
    key = plan.key
    with workshop.lock("complete", wait=True):
        if _is_current(out, key, described):
            _log.info("%s: cache hit, nothing to do", out)
            return
        workshop.adopt(out)  # located by its manifest, so before the manifest is removed
        (out / artifacts.MANIFEST).unlink(
            missing_ok=True
        )  # stale or damaged: must not be used again
    records = _finish_shards(
        encoder, plan, workshop, lambda: _is_labelled(out, key, described), progress
    )
    if records is None:
        return
    with workshop.lock("complete", wait=True):
        if not _is_current(out, key, described):
            _complete(encoder, plan, records, workshop, stage)
