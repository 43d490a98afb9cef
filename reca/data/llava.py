"""Conversations about images in LLaVA's JSON format, such as LLaVA-1.5's mix-665k."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from reca.data.archives import ImageFolder
from reca.data.hashes import hash_files
from reca.data.samples import Conversation, Sample
from reca.images import UnreadableImage
from reca.records import sha256_file, sha256_json

log = logging.getLogger(__name__)

ASKS = ("human", "user")
ANSWERS = ("gpt", "assistant")
IMAGE_TAG = "<image>"
LEDGER = ".reca-llava-hashes.json"


class LlavaDataset:
    """The entries of a LLaVA file that have an image: one conversation each, and the image's file.

    Args:
        path: the JSON file, or a folder that holds exactly one.
        images: the folder that image paths are relative to (default: the folder of the file), or
            one folder for each first part of these paths (`coco`, `gqa`, ...). Images lie there as
            files or inside zip and tar archives.
        max_malformed: share of entries that may be malformed; these are counted and left out.

    Entries without an image are counted in `without_image`, malformed ones in `malformed` (with
    their reasons).
    """

    def __init__(
        self,
        path: Path,
        images: str | Path | Mapping[str, str | Path] | None = None,
        max_malformed: float = 0.001,
    ) -> None:
        self.file = _single_json(path)
        folders = images if isinstance(images, Mapping) else {"": images or self.file.parent}
        self.folders = {first: ImageFolder(Path(folder)) for first, folder in folders.items()}
        self.without_image = 0
        self.malformed: list[tuple[str, str]] = []
        self.entries: list[tuple[str, str, Conversation]] = []
        records = _load(self.file)
        for position, record in enumerate(records):
            self._add(position, record)
        self._check(len(records), max_malformed)

    def __len__(self) -> int:
        """Number of well-formed entries with an image."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        """The entry at `index`; a missing image file is `UnreadableImage`."""
        name, image, _ = self.entries[index]
        first, rest = self._place(image)
        if first not in self.folders:
            raise UnreadableImage(name, f"no folder is given for the images of {first!r}")
        return replace(self.texts(index), image=self.folders[first].read(rest, name))

    def texts(self, index: int) -> Sample:
        """The entry at `index` without its image."""
        name, _, turns = self.entries[index]
        return Sample(id=name, conversations=[turns])

    def fingerprint(self) -> str:
        """Hash of the JSON file, of every archive, and of every image file that it names."""
        images = dict.fromkeys(image for _, image, _ in self.entries)
        found = {}
        for first, folder in self.folders.items():
            names = [rest for own, rest in map(self._place, images) if own == first]
            loose = [name for name in names if (folder.root / name).is_file()]
            missing = sum(name not in folder for name in names)
            hashes = hash_files(folder.root, loose, LEDGER)
            found[first] = [folder.fingerprint(), hashes, missing]
        return sha256_json([sha256_file(self.file), found])

    def _place(self, image: str) -> tuple[str, str]:
        """Which folder an image path belongs to, and its name there."""
        if "" in self.folders:
            return "", image
        first, _, rest = image.partition("/")
        return first, rest

    def _add(self, position: int, record: Any) -> None:
        name = f"{self.file.stem}/{position}"
        try:
            if not record.get("image"):
                self.without_image += 1
                return
            image, turns = _safe_path(record["image"]), pair_turns(record["conversations"])
        except (KeyError, TypeError, AttributeError, ValueError) as fault:
            self.malformed.append((name, f"{type(fault).__name__}: {fault}"))
            return
        self.entries.append((f"{name}/{record.get('id', '')}", image, turns))

    def _check(self, total: int, max_malformed: float) -> None:
        if self.malformed:
            name, reason = self.malformed[0]
            message = f"{len(self.malformed)} of {total} entries malformed, first {name}: {reason}"
            if len(self.malformed) > max_malformed * total:
                raise ValueError(
                    f"{self.file}: {message}; more than {max_malformed:.2%} (max_malformed)"
                )
            log.warning("%s: %s", self.file, message)
        if not self.entries:
            raise ValueError(f"{self.file}: no entry with an image")
        log.info("%s: %d entries without image left out", self.file, self.without_image)


def pair_turns(turns: Sequence[Mapping[str, str]]) -> Conversation:
    """Pair the turns of people and assistant, each {"from": speaker, "value": text}.

    The image tag and the line breaks around it are removed from questions: where the image goes is
    the model family's business. Assistant turns before the first question are dropped.

    Raises:
        ValueError: turns that do not alternate, an unknown speaker, or no turn.
    """
    speakers = [turn["from"] for turn in turns]
    first = next((at for at, speaker in enumerate(speakers) if speaker in ASKS), len(turns))
    asked, answered = turns[first::2], turns[first + 1 :: 2]
    if not asked or len(asked) != len(answered):
        raise ValueError(f"{len(turns)} turns do not make question and answer pairs")
    if any(t["from"] not in ASKS for t in asked) or any(t["from"] not in ANSWERS for t in answered):
        raise ValueError(f"speakers do not alternate: {', '.join(map(str, speakers))}")
    return [
        (_without_tag(question["value"]), str(answer["value"]))
        for question, answer in zip(asked, answered, strict=True)
    ]


def _without_tag(text: str) -> str:
    return "\n".join(filter(None, (part.strip() for part in text.split(IMAGE_TAG))))


def _safe_path(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"image path {name!r} leaves the image folder")
    return path.as_posix()


def _single_json(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(file for file in path.glob("*.json") if not file.name.startswith("."))
    found = [file for file in found if file.name not in ("manifest.json", "run.json")]
    if len(found) != 1:
        raise ValueError(f"{path}: expected one JSON file of conversations, found {len(found)}")
    return found[0]


def _load(path: Path) -> list[Any]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise ValueError(f"{path}: not valid JSON ({fault}); fetch it again") from fault
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a JSON list of entries, got {type(records).__name__}")
    return records
