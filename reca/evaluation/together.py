"""Whether samples and evidence belong together: by the manifests of their stages and the images' hashes in the rows.

Folders without a manifest, and rows without a hash, such as those of an older reca, say nothing and are accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.core.artifacts import MANIFEST, read_json, read_manifest, sha256_bytes, sha256_file
from reca.core.documents import fields, json_lines, json_value
from reca.evaluation.files import EVIDENCE, JUDGE, SCORER

Record = Mapping[str, Any]


def demand_together(samples: Sequence[Path], evidence: Sequence[Path]) -> None:
    """ValueError if shards are of different models or observers, or evidence is not of these samples."""
    _demand_alike(samples, _drawn_by, "give the shards of one run")
    _demand_alike(evidence, _seen_by, "run `reca observe` for all shards with the same networks")
    records = {sha256_file(folder / MANIFEST) for folder in samples if _has_record(folder)}
    if not records:
        return
    used: dict[str, Path] = {}
    for folder in filter(_has_record, evidence):
        of = read_manifest(folder)["inputs"].get("samples")
        if of is None:
            continue
        if of["sha256"] not in records:
            if len(records) < len(samples):  # may be of those that have no manifest
                continue
            raise ValueError(
                f"{folder}: is the evidence of other samples ({of['path']}, or these before they were sampled again); "
                "give the evidence of these samples, or run `reca observe` again"
            )
        if of["sha256"] in used:
            raise ValueError(
                f"{folder}: is the evidence of the same samples as {used[of['sha256']]}; give that of every shard once"
            )
        used[of["sha256"]] = folder


def _has_record(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _drawn_by(record: Record) -> dict[str, Any]:
    model = record["inputs"].get("model")
    return {"model": model and model["sha256"], "sampler": _section(record).get("sampler")}


def _seen_by(record: Record) -> dict[str, Any]:
    read = {name: one["sha256"] for name, one in record["inputs"].items() if name != "samples"}
    return read | {name: _section(record).get(name) for name in ("scorer", "crop_black")}


def _section(record: Record) -> Mapping[str, Any]:
    section = record["section"]
    return section if isinstance(section, dict) else {}


def _demand_alike(
    folders: Sequence[Path], said: Callable[[Record], dict[str, Any]], remedy: str
) -> None:
    found = {folder: said(read_manifest(folder)) for folder in filter(_has_record, folders)}
    _demand_equal(found, remedy)


def _demand_equal(found: Mapping[Path, Mapping[str, Any]], remedy: str) -> None:
    """ValueError names the first path whose facts differ from those of the first one, and the fact."""
    if not found:
        return
    (first, expected), *others = found.items()
    for path, facts in others:
        for name in sorted(expected.keys() | facts.keys()):
            if expected.get(name) != facts.get(name):
                raise ValueError(
                    f"{path}: {name} is {facts.get(name)}, but {expected.get(name)} in {first}; {remedy}"
                )


def cards_of(evidence: Sequence[Path]) -> list[dict[str, Any]]:
    """The records of the judge in the folders of evidence; ValueError if the shards had different judges."""
    paths = [folder / JUDGE for folder in evidence if (folder / JUDGE).is_file()]
    cards = [fields(read_json(path), path, determinants=dict, totals=dict) for path in paths]
    remedy = "run `reca observe` for all shards with the same judge"
    if paths and len(paths) < len(evidence):
        lacking = next(folder for folder in evidence if folder / JUDGE not in paths)
        raise ValueError(f"{lacking / JUDGE}: missing, but {paths[0]} exists; {remedy}")
    judges = [card["determinants"] for card in cards]
    _demand_equal(dict(zip(paths, judges, strict=True)), remedy)
    return cards


def scorer_of(evidence: Sequence[Path], chosen: str | None) -> str | None:
    """The network that made the evidence, by its records; `chosen` where they are of an older version.

    ValueError if the shards are of different networks, or of another one than `chosen`.
    """
    paths = [folder / SCORER for folder in evidence if (folder / SCORER).is_file()]
    cards = {path: fields(read_json(path), path, scorer=str) for path in paths}
    _demand_equal(cards, "run `reca observe` for all shards with the same scorer")
    made_by = cards[paths[0]]["scorer"] if paths else None
    if made_by and chosen and chosen != made_by:
        raise ValueError(
            f"{paths[0]}: this evidence is by {made_by}, not by {chosen}; leave the scorer out, or observe again"
        )
    return made_by or chosen


def demand_images(evidence: Path, pictures: Mapping[tuple[str, int], bytes]) -> None:
    """ValueError if a row of evidence is about another image than that of the same prompt and sample."""
    path, hashes = evidence / EVIDENCE, dict[tuple[str, int], str]()
    for number, line in json_lines(path):
        where = f"{path}, line {number}"
        row = fields(json_value(line, where), where)
        if "sha256" not in row:
            continue
        row = fields(row, where, id=str, sha256=str, **({"sample": int} if "sample" in row else {}))
        key = row["id"], row.get("sample", 0)
        if key not in pictures:  # a judge may be asked several times about an image: `<id>/SC`
            key = row["id"].rpartition("/")[0], key[1]
        if key not in pictures:
            raise ValueError(
                f"{where}: no image of {row['id']!r}, sample {key[1]}, in the folder to score; give the evidence of "
                "these images, or score without --evidence"
            )
        if key not in hashes:
            hashes[key] = sha256_bytes(pictures[key])
        if hashes[key] != row["sha256"]:
            raise ValueError(
                f"{where}: about another image of {row['id']!r} than the one in the folder to score; give the evidence "
                "of these images, or score without --evidence"
            )
