"""sources, fetch, pin: list, download and pin sources."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path


def show(arguments: Namespace) -> None:
    """Print one line per source."""
    from reca.sources.fetch import list_sources

    for status in list_sources():
        source = status.source
        size = f"{source.gigabytes:g} GB" if source.gigabytes else ""
        print(
            f"{source.name:<36} {'pinned' if status.pinned else 'open':<7} {size:>9}  {source.licence}"
        )


def fetch(arguments: Namespace) -> None:
    """Download one source into a folder, with a manifest."""
    from reca.commands.code import stage_code
    from reca.core.artifacts import Stage
    from reca.sources import fetch as sources

    section = {"source": arguments.name}
    code = stage_code("fetch")
    with Stage("fetch", arguments.out, inputs={}, section=section, code=code) as stage:
        fetched = sources.fetch(
            arguments.name,
            stage.staging,
            mirror=_path(arguments.mirror),
            allow_unpinned=arguments.allow_unpinned,
        )
        stage.note(files=[asdict(file) for file in fetched])
    # Not before: hashing the folder takes minutes, and who ends it must not lose the download.
    sources.forget(arguments.name, fetched)


def pin(arguments: Namespace) -> None:
    """Write the hashes of sources to the lock file."""
    from reca.sources import fetch as sources

    for name in sources.pin(
        arguments.names, mirror=_path(arguments.mirror), update=arguments.update
    ):
        print(f"{name}: pinned in {sources.LOCK_FILE}")


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
