"""The log of a command: to standard error and, if given, to a file."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

from reca.core.ownership import check_file


def _is_log(path: Path) -> bool:
    """Whether a file begins like a log of reca; other files are not appended to."""
    with open(path, "rb") as file:
        return re.match(rb"\d\d:\d\d:\d\d \S+: ", file.read(200)) is not None


# The hub's clients log every address at INFO, and those that a hub redirects to carry a signature that grants access.
_CLIENTS = ("httpx", "httpx2")


def start_log(file: str | None) -> None:
    """Log to standard error and, if given, to a file; ValueError if the file exists and is not a log of reca."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file:
        check_file("--log", Path(file), _is_log)
        os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
        handlers.append(logging.FileHandler(file, mode="a"))
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
        force=True,
    )
    for client in _CLIENTS:
        logging.getLogger(client).setLevel(logging.WARNING)
