"""Benchmarks of this package's design choices against simpler ones; each writes a file in docs/results."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The processor's name from Linux, or from Python on other systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
