"""Conversations about images in LLaVA's JSON format, such as LLaVA-1.5's mix-665k."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reca.core.artifacts import sha256_json
from reca.core.documents import kind_of, read_json
from reca.core.ledger import hashes_of
from reca.core.structure import Share
from reca.core.unreadable import UnreadableImage, UnreadableText
from reca.data.dataset import Conversation, Sample
from reca.data.readers.archives import ImageFolder
from reca.data.readers.hashes import hash_files
from reca.data.readers.names import relative_name
from reca.data.readers.text import text_of

log = logging.getLogger(__name__)

ASKS = ("human", "user")
ANSWERS = ("gpt", "assistant")
IMAGE_TAG = "<image>"
MAX_BYTES = 8 * 2**30  # the 665k conversations of LLaVA-1.5 have one


class LlavaDataset:
    """The entries of a LLaVA file with an image: one conversation and an image file each.

    Args:
        path: the JSON file, or a folder that contains exactly one.
        images: the folder that image paths are relative to (default: the folder of the file), or
            one folder for each first part of these paths (`coco`, `gqa`, ...). Images are
            files or members of zip and tar archives.
        max_malformed: share of entries that may be malformed; these are counted and skipped.

    Entries without an image are listed in `without_image`, malformed ones in `malformed` with their reasons: an
    invalid image path, turns that do not alternate, or a turn that is not text (`readers.text`).
    """

    def __init__(
        self,
        path: Path,
        images: str | Path | Mapping[str, str | Path] | None = None,
        max_malformed: Share = 0.001,
    ) -> None:
        self.file = _single_json(path)
        folders = images if isinstance(images, Mapping) else {"": images or self.file.parent}
        self.folders = {first: ImageFolder(Path(folder)) for first, folder in folders.items()}
        self.text_only: list[str] = []
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
        """Hash of the JSON file, every archive, and every image file that it refers to."""
        images = dict.fromkeys(image for _, image, _ in self.entries)
        sources: dict[str, list[Any]] = {}
        for first, folder in self.folders.items():
            names = [rest for own, rest in map(self._place, images) if own == first]
            loose = [name for name in names if (folder.root / name).is_file()]
            missing = sum(name not in folder for name in names)
            hashes = hash_files(folder.root, loose)
            sources[first] = [folder.fingerprint(), hashes, missing]
        return sha256_json([hashes_of(self.file.parent, [self.file.name])[self.file.name], sources])

    def _place(self, image: str) -> tuple[str, str]:
        """The folder that an image path belongs to, and its name there."""
        if "" in self.folders:
            return "", image
        first, _, rest = image.partition("/")
        return first, rest

    def _add(self, position: int, record: Any) -> None:
        name = f"{self.file.stem}/{position}"
        try:
            if not isinstance(record, dict):
                raise ValueError(f"the entry is {kind_of(record)}, not an object")
            if record.get("image") in (None, ""):
                self.text_only.append(name)
                return
            image = _image_name(record["image"])
            turns = pair_turns(record.get("conversations"), name)
        except UnreadableText as fault:
            self.malformed.append((name, fault.reason))
            return
        except ValueError as fault:
            self.malformed.append((name, str(fault)))
            return
        own = record.get("id", "")
        self.entries.append((f"{name}/{own if isinstance(own, str | int) else ''}", image, turns))

    @property
    def without_image(self) -> int:
        """Number of entries without an image."""
        return len(self.text_only)

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Names of the entries that are not used, by reason."""
        skipped = {"entries without an image": self.text_only}
        skipped["malformed entries"] = [f"{name}: {reason}" for name, reason in self.malformed]
        return {reason: names for reason, names in skipped.items() if names}

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
        log.info("%s: %d entries without an image skipped", self.file, self.without_image)


def pair_turns(turns: Any, name: str = "conversation") -> Conversation:
    """Pair the turns of user and assistant, each {"from": speaker, "value": text}; `name` is the sample's.

    The image tag and the line breaks around it are removed from questions: the model family decides
    where the image goes. Assistant turns before the first question are dropped.

    Raises:
        UnreadableText: not a list of such turns, turns that do not alternate, an unknown speaker, or a value that is
            not text.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UnreadableText(name, "the conversation is not a list of turns")
    speakers = [turn.get("from") for turn in turns]
    first = next((at for at, speaker in enumerate(speakers) if speaker in ASKS), len(turns))
    questions, answers = turns[first::2], turns[first + 1 :: 2]
    if not questions or len(questions) != len(answers):
        raise UnreadableText(name, f"{len(turns)} turns do not make question and answer pairs")
    expected = [kind for _ in questions for kind in (ASKS, ANSWERS)]
    for speaker, allowed in zip(speakers[first:], expected, strict=True):
        if speaker not in allowed:
            shown = repr(speaker)[:40] if isinstance(speaker, str) else kind_of(speaker)
            raise UnreadableText(name, f"speakers do not alternate: {shown} is not {allowed[0]!r}")
    return [
        (_question(question, name), _value(answer, name))
        for question, answer in zip(questions, answers, strict=True)
    ]


def _value(turn: Mapping[str, Any], name: str) -> str:
    return text_of(turn.get("value"), name, f"the value of a {turn['from']} turn")


def _question(turn: Mapping[str, Any], name: str) -> str:
    parts = (part.strip() for part in _value(turn, name).split(IMAGE_TAG))
    what = f"the value of a {turn['from']} turn, the image tag apart,"
    return text_of("\n".join(filter(None, parts)), name, what)


def _image_name(value: Any) -> str:
    if isinstance(value, list):
        raise ValueError(
            f"the entry has a list of {len(value)} images; one image for each entry is read"
        )
    return relative_name(value, "the image path")


def _single_json(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(file for file in path.glob("*.json") if not file.name.startswith("."))
    files = [file for file in files if file.name not in ("manifest.json", "run.json")]
    if len(files) != 1:
        raise ValueError(f"{path}: expected one JSON file of conversations, found {len(files)}")
    return files[0]


def _load(path: Path) -> list[Any]:
    records = read_json(path, MAX_BYTES)
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a JSON list of entries, found {kind_of(records)}")
    return records
