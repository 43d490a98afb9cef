"""Opens the data set of one role of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reca.data.formats import open_dataset

if TYPE_CHECKING:
    from reca.config.schema import DataSource
    from reca.data.dataset import Dataset


def open_role(
    source: DataSource, folder: Path, companions: Mapping[str, Path] | None = None
) -> Dataset:
    """The data set of one role at `folder`; `companions` are the folders of the images that it refers to."""
    images = {"images": dict(companions)} if companions else {}
    return open_dataset(source.kind, folder, **source.options, **images)
