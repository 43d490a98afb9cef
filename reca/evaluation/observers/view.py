"""The input of an observer, and evidence rows that survive an interruption."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.artifacts import sha256_bytes, sha256_json, write_lines
from reca.core.finite import named
from reca.evaluation.files import EVIDENCE
from reca.inference.items import Prompt, Question
from reca.inference.resume import ResumableRows, of_code

if TYPE_CHECKING:
    from reca.config.schema import BenchmarkConfig

Key = tuple[str, int]
Row = dict[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """Samples to observe, and where to write.

    `pictures`: encoded images by (prompt id, sample); `samples`: images per prompt; `data`: downloaded folders by role;
    `sources`: images to edit or to reconstruct; `asked`, `answers`: questions and the model's answers; `code`: the
    fingerprint of the code that observes.
    """

    benchmark: BenchmarkConfig
    items: Sequence[Prompt]
    pictures: Mapping[Key, bytes]
    data: Mapping[str, Path]
    samples: int
    work: Path
    out: Path
    ledger: Path
    sources: Mapping[str, bytes] = field(default_factory=dict)
    asked: Sequence[Question] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    code: str = ""

    def resumable(self) -> ResumableRows:
        """The rows of an earlier, interrupted run of the same code."""
        return ResumableRows(of_code(self.work, self.code) / EVIDENCE)

    def write(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Write the evidence; returns facts for the record."""
        return {"evidence": write_lines(self.out / EVIDENCE, rows)}


def device() -> str:
    """The first GPU if there is one, else the CPU."""
    from reca.core.devices import device_of

    return str(device_of())


def source_folder(data: Mapping[str, Path], role: str, benchmark: str) -> Path:
    """The folder of a role; ValueError if it is not given."""
    if role not in data:
        raise ValueError(f"{benchmark}: no folder for role {role!r}; give --source {role}=DIR")
    return data[role]


def identity(folder: Path) -> Any:
    """What identifies the files of a network: the hash of its fetch record, else names, sizes and times of the files.

    Without the times, other weights of the same network would pass for these.
    """
    record = folder / "manifest.json"
    if record.is_file():
        return sha256_bytes(record.read_bytes())
    files = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return sorted((p.relative_to(folder).as_posix(), s.st_size, s.st_mtime_ns) for p, s in files)


def seen(
    view: View,
    look: Callable[[Prompt, int, bytes], list[Row]],
    determinants: Any,
    each: Callable[[Prompt], Any],
) -> Iterator[Row]:
    """The rows of `look(item, sample, image)` for every image, in prompt order, with its hash; saved rows are reused.

    `determinants`: what all rows depend on besides the image, such as the networks; `each(item)`: what those of an item
    depend on. Rows of other determinants, or of other code (`view.code`), are computed again.
    """
    resume, pictures = view.resumable(), view.pictures
    every = [(item, k) for item in view.items for k in range(view.samples)]
    todo = [(item, k) for item, k in every if (item.id, k) in pictures]
    for number, (item, k) in enumerate(todo, 1):
        data = pictures[item.id, k]
        sha256 = sha256_bytes(data)
        key = f"{item.id}/{k}/{sha256}/{sha256_json([determinants, each(item)])}"
        with named([f"{item.id}/{k}"]):
            rows = resume.of(key, lambda item=item, k=k, data=data: look(item, k, data))  # type: ignore[misc]
        yield from ({**row, "sha256": sha256} for row in rows)
        if number % 50 == 0 or number == len(todo):
            _log.info("%d of %d images examined", number, len(todo))
