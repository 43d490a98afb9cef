"""Commands of this process that talk to a loopback hub in place of the real one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import huggingface_hub.constants
import pytest

from tests.hub.server import Hub, Repository


@contextmanager
def served(
    repositories: Mapping[str, Repository], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """A hub with these repositories; no other is asked, for telemetry or a token."""
    hub = Hub(repositories)
    # the constants were read from the environment when the library was imported
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in hub.environment.items():
        monkeypatch.setenv(name, value)
    with hub.serving():
        yield hub
