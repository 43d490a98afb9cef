"""Benchmarks of our own choices against plainer ones; each writes a file of docs/results."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The processor's name as Linux tells it, elsewhere as Python knows it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
