"""The trainer's data: feature caches joined by image id with the texts of their data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reca.align.batches import EditRows, FeatureData, FeatureRows, Places, TaskData
from reca.config.recipe import Recipe, visits
from reca.core.artifacts import MANIFEST, sha256_file
from reca.data.dataset import read_texts
from reca.data.formats import max_unreadable
from reca.data.order import Visits
from reca.data.prompts import bank
from reca.data.role import Role
from reca.features.build import FeatureCache, open_cache
from reca.features.roles import open_role

if TYPE_CHECKING:
    from reca.config.schema import DataSource
    from reca.data.formats import Sample
    from reca.models.contract import UnifiedModel, Use


def feature_data(
    recipe: Recipe,
    sources: Mapping[str, DataSource],
    folders: Mapping[str, Path],
    caches: Mapping[str, Path],
    *,
    seed: int,
    ranks: int,
) -> FeatureData:
    """Open and join the data that the recipe's tasks need; ValueError names what is missing.

    `folders` are data sets by role, `caches` feature caches by use (`draw`, `read`, `edit`). A cache of the images that
    runs read must have those of this `seed` and number of `ranks`.
    """
    tasks = recipe.active()
    generates, reads = {"reca", "t2i"} & set(tasks), "i2t" in tasks
    draw = open_cache(_folder_of(caches, "draw", "cache"), use="draw") if generates else None
    read = open_cache(_folder_of(caches, "read", "cache"), use="read") if reads else None
    text_samples: Sequence[Sample] = []
    if "text" in tasks:
        source, folder = _role(sources, folders, Role.TEXT)
        text_samples = read_texts(open_role(source, folder), max_unreadable(source.options))
    captions: list[str] = []
    if draw is not None and "t2i" in tasks:
        captions = _captions(_samples(draw, *_role(sources, folders, Role.RECONSTRUCT)))
    questions = _samples(read, *_role(sources, folders, Role.ANSWER)) if read is not None else []
    edited = None
    if "edit" in tasks:
        edited = open_cache(_folder_of(caches, "edit", "cache"), use="edit")
    edits = []
    if edited is not None:
        source, folder = _role(sources, folders, Role.EDIT)
        edits = edits_of(edited.ids, _samples(edited, source, folder), folder)
    opened = {Role.RECONSTRUCT: draw, Role.ANSWER: read}
    return FeatureData(
        draw=draw,
        read=read,
        prompts=bank(recipe.prompts, recipe.prompts_file) if "reca" in tasks else (),
        draw_captions=captions,
        read_conversations=[sample.conversations for sample in questions],
        text_conversations=[sample.conversations for sample in text_samples],
        edit=edited,
        edits=edits,
        identity={use: sha256_file(Path(folder) / MANIFEST) for use, folder in caches.items()},
        places={
            role: _places(cache, visits([recipe], role, [seed], ranks))
            for role, cache in opened.items()
            if cache is not None and cache.visits is not None
        },
    )


def check_encoders(data: TaskData, model: UnifiedModel) -> None:
    """ValueError for a feature cache that another model's encoders made."""
    if not isinstance(data, FeatureData):
        return
    uses: dict[Use, FeatureRows | None] = {"draw": data.draw, "read": data.read, "edit": data.edit}
    for use, rows in uses.items():
        if isinstance(rows, FeatureCache):
            rows.check_encoder(model.encoder_fingerprint(use))


def _places(cache: FeatureCache, wanted: Visits) -> Places:
    """Where the samples of a run are in a cache that has not all; ValueError if it lacks some."""
    assert cache.visits is not None
    if lacking := cache.visits.missing(wanted):
        raise ValueError(
            f"{cache.directory}: has the images that {cache.visits.samples:,} samples of seeds "
            f"{list(cache.visits.seeds)} read, but this run reads {lacking}; build the cache for this run "
            "(snakemake does when seeds, steps, batches or GPUs change), or set models.NAME.cache_rows=all"
        )
    return Places(cache.size, cache.positions.tolist())


def edits_of(ids: Sequence[str], samples: Sequence[Sample], where: Path) -> list[EditRows]:
    """The edits among the cached images: every image with a `source`, its caption being the instruction.

    ValueError for a source that is not among the images, a missing instruction, or no edit at all.
    """
    rows = {name: row for row, name in enumerate(ids)}
    edits = []
    for row, sample in enumerate(samples):
        source = sample.extra.get("source")
        if source is None:
            continue
        if not isinstance(source, str) or source not in rows or not sample.caption:
            problem = (
                f"source {source!r} is not an image of this data set"
                if sample.caption
                else "no caption"
            )
            raise ValueError(
                f"{where}: {sample.id}: {problem}; an edit needs a caption, the instruction, and `source`, the id of "
                "the image to change, in the same data set"
            )
        edits.append(EditRows(rows[source], row, sample.caption))
    if not edits:
        raise ValueError(f"{where}: no image has a `source`, so there are no edits to train on")
    return edits


def _folder_of(folders: Mapping[str, Path], name: str, option: str) -> Path:
    if name not in folders:
        raise ValueError(f"the recipe needs --{option} {name}=DIR, but got only {sorted(folders)}")
    return folders[name]


def _role(
    sources: Mapping[str, DataSource], folders: Mapping[str, Path], role: Role
) -> tuple[DataSource, Path]:
    """How the data of a role are read, and their folder; ValueError if either is not given."""
    if role not in sources:
        raise ValueError(
            f"the recipe reads data of role '{role}', but the configuration has only {sorted(sources)}; add data.{role}"
        )
    return sources[role], _folder_of(folders, role, "data")


def _samples(cache: FeatureCache, source: DataSource, folder: Path) -> list[Sample]:
    """The samples of the cached images, in the order of the cache, which may skip unreadable ones."""
    dataset = open_role(source, folder)
    samples = [dataset.texts(position) for position in cache.positions]
    misplaced = [name for name, sample in zip(cache.ids, samples, strict=True) if sample.id != name]
    if misplaced:
        raise ValueError(
            f"{folder}: {len(misplaced)} cached images are not at their position ({misplaced[0]}); rebuild the cache"
        )
    return samples


def _captions(samples: Sequence[Sample]) -> list[str]:
    """The caption of every sample; ValueError with the number of samples without one."""
    missing = [sample.id for sample in samples if not sample.caption]
    if missing:
        raise ValueError(
            f"{missing[0]}: no caption, and none for {len(missing) - 1} more of {len(samples)} samples, but the recipe "
            "trains text-to-image; use a data set with captions"
        )
    return [str(sample.caption) for sample in samples]
