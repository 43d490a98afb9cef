"""Caches joined with the texts of their data sets: what the trainer reads, by image id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reca.align.batches import EditRows, FeatureData
from reca.config.recipe import Recipe
from reca.core.artifacts import MANIFEST, sha256_file
from reca.data.dataset import read_texts
from reca.data.formats import max_unreadable
from reca.data.prompts import bank
from reca.features.build import FeatureCache, open_cache
from reca.features.roles import open_role

if TYPE_CHECKING:
    from reca.config.schema import DataSource
    from reca.data.formats import Sample

DRAWN, READ, TOLD, CHANGED = "reconstruct", "answer", "text", "edit"  # roles in a configuration


def feature_data(
    recipe: Recipe,
    sources: Mapping[str, DataSource],
    folders: Mapping[str, Path],
    caches: Mapping[str, Path],
) -> FeatureData:
    """Open what the recipe's tasks need and join it; ValueError names what is missing.

    `folders` are data sets by role, `caches` feature caches by use (`draw`, `read`, `edit`).
    """
    tasks = recipe.active()
    drawing, reading = {"reca", "t2i"} & set(tasks), "i2t" in tasks
    draw = open_cache(_given(caches, "draw", "cache")) if drawing else None
    read = open_cache(_given(caches, "read", "cache")) if reading else None
    text_samples: Sequence[Sample] = []
    if "text" in tasks:
        source, folder = _role(sources, folders, TOLD)
        text_samples = read_texts(open_role(source, folder), max_unreadable(source.options))
    captions: list[str] = []
    if draw is not None and "t2i" in tasks:
        captions = _captions(_samples(draw, *_role(sources, folders, DRAWN)))
    asked = _samples(read, *_role(sources, folders, READ)) if read is not None else []
    changed = open_cache(_given(caches, "edit", "cache")) if "edit" in tasks else None
    edits = []
    if changed is not None:
        source, folder = _role(sources, folders, CHANGED)
        edits = edits_of(changed.ids, _samples(changed, source, folder), folder)
    return FeatureData(
        draw=draw,
        read=read,
        prompts=bank(recipe.prompts, recipe.prompts_file) if "reca" in tasks else (),
        draw_captions=captions,
        read_conversations=[sample.conversations for sample in asked],
        text_conversations=[sample.conversations for sample in text_samples],
        edit=changed,
        edits=edits,
        identity={use: sha256_file(Path(folder) / MANIFEST) for use, folder in caches.items()},
    )


def edits_of(ids: Sequence[str], samples: Sequence[Sample], where: Path) -> list[EditRows]:
    """The edits among cached images: every one that names the `source` it was made from, its caption the instruction.

    ValueError for a source that is not among the images, a missing instruction, or no edit at all.
    """
    rows = {name: row for row, name in enumerate(ids)}
    found = []
    for row, sample in enumerate(samples):
        source = sample.extra.get("source")
        if source is None:
            continue
        if not isinstance(source, str) or source not in rows or not sample.caption:
            problem = f"source {source!r} is no picture here" if sample.caption else "no caption"
            raise ValueError(
                f"{where}: {sample.id}: {problem}; an edit needs a caption that says what to do, and `source`, the id "
                "of the picture to change, in the same data set"
            )
        found.append(EditRows(rows[source], row, sample.caption))
    if not found:
        raise ValueError(f"{where}: no picture names a `source`, so there is no edit to learn from")
    return found


def _given(folders: Mapping[str, Path], name: str, option: str) -> Path:
    if name not in folders:
        raise ValueError(
            f"the recipe needs --{option} {name}=DIR, but only {sorted(folders)} are given"
        )
    return folders[name]


def _role(
    sources: Mapping[str, DataSource], folders: Mapping[str, Path], role: str
) -> tuple[DataSource, Path]:
    """How the data of a role are read, and where they are; ValueError where one of both is not given."""
    if role not in sources:
        raise ValueError(
            f"the recipe reads data of role {role!r}, but the configuration has only {sorted(sources)}; add data.{role}"
        )
    return sources[role], _given(folders, role, "data")


def _samples(cache: FeatureCache, source: DataSource, folder: Path) -> list[Sample]:
    """The samples of the cached images, in the cache's order: it may have left unreadable ones out."""
    dataset = open_role(source, folder)
    found = [dataset.texts(position) for position in cache.positions]
    wrong = [name for name, sample in zip(cache.ids, found, strict=True) if sample.id != name]
    if wrong:
        raise ValueError(
            f"{folder}: {len(wrong)} cached images are not in their place ({wrong[0]}); build the cache again"
        )
    return found


def _captions(samples: Sequence[Sample]) -> list[str]:
    """The caption of every sample; ValueError counts those that have none."""
    without = [sample.id for sample in samples if not sample.caption]
    if without:
        raise ValueError(
            f"{without[0]}: no caption, nor have {len(without) - 1} more of {len(samples)} samples, but the recipe "
            "trains text-to-image; give a data set with captions"
        )
    return [str(sample.caption) for sample in samples]
