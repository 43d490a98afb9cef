"""Downloads through `huggingface_hub`: resumed, parallel, by xet where offered, with errors in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest

from reca.sources import parts
from tests.hub.server import COMMIT, Hub, HubHandler, Repository
from tests.sources.conftest import FAST, HUB_ENTRY, NAME, REPOSITORY, WANTED, House

WEIGHTS = REPOSITORY["model.safetensors"]
ONE = replace(FAST, files=1, attempts=1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between the attempts of `huggingface_hub` itself, and small pieces on their way to the disk."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)


@pytest.mark.usefixtures("impatient")
def test_a_broken_transfer_is_resumed_by_the_next_call(house: House, hub: Hub) -> None:
    house.pin()
    part = house.root / "work" / "model" / "model.safetensors.part"
    hub.cut = 300  # more than config.json has
    with pytest.raises(ConnectionError, match="without progress"):
        house.fetch(policy=ONE)
    arrived = part.stat().st_size
    assert arrived == 300
    hub.cut = None
    hub.ranges.clear()
    assert house.fetch() == WANTED
    assert ("model.safetensors", arrived) in hub.ranges
    assert not [p for p in (house.root / "work").rglob("*") if p.is_file()]


@pytest.mark.usefixtures("impatient")
def test_a_spoilt_part_costs_one_clean_attempt(house: House, hub: Hub) -> None:
    house.pin()
    hub.cut = 300
    with pytest.raises(ConnectionError):
        house.fetch(policy=ONE)
    part = house.root / "work" / "model" / "model.safetensors.part"
    part.write_bytes(b"x" * part.stat().st_size)
    hub.cut = None
    assert house.fetch() == WANTED


def test_xet_is_used_where_the_hub_offers_it(
    house: House, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.pin()
    hub.xet = {"X-Xet-Hash": "a" * 64, "X-Xet-Refresh-Route": f"{hub.url}/refresh"}
    names = []

    def transfer(*, incomplete_path: Path, displayed_filename: str, **more: object) -> None:
        names.append(displayed_filename)
        incomplete_path.write_bytes(
            next(data for name, data in REPOSITORY.items() if name.endswith(displayed_filename))
        )

    monkeypatch.setattr("reca.sources.hub.xet_get", transfer)
    monkeypatch.setattr("reca.sources.hub.is_xet_available", lambda: True)
    hub.requests.clear()
    assert house.fetch() == WANTED
    assert "model.safetensors" in names
    assert hub.requests == []


def reply(status: int, **headers: str) -> Callable[[HubHandler], None]:
    return lambda handler: handler.reply(status, b"<html>", Content_Type="text/html", **headers)


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (reply(403, X_Error_Code="GatedRepo"), ValueError, "gated .* licence .* HF_TOKEN"),
        (reply(401, X_Error_Code="RepoNotFound"), ValueError, "no such repository, or a private"),
        (
            reply(404, X_Error_Code="RevisionNotFound"),
            ValueError,
            f"no revision {COMMIT}.*--update",
        ),
        (reply(404, X_Error_Code="EntryNotFound"), ValueError, "no such file .*404"),
        (reply(403), ValueError, "access denied .403.*HF_TOKEN"),
        (reply(200), ValueError, "not a hub's .*HTML.*HF_ENDPOINT"),
        (reply(200, X_Repo_Commit="f" * 40, ETag='"x"'), ValueError, "the hub gave ffff"),
        (reply(503), ConnectionError, "gave up after 2 attempts .*answered 503"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    house: House, hub: Hub, answer: Callable[[HubHandler], None], kind: type, says: str
) -> None:
    house.pin()
    hub.broken = answer
    with pytest.raises(kind, match=says) as why:
        house.fetch()
    assert "\n" not in str(why.value)
    assert not (house.root / "out").exists()


def test_offline_and_no_network_are_one_line(
    house: House, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.pin()
    house.way["endpoints"] = replace(house.way["endpoints"], hub="http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="no answer"):
        house.fetch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"offline .HF_HUB_OFFLINE is set.*mirror"):
        house.fetch()


def test_full_disk_is_seen_before_the_transfer(
    house: House, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.pin()
    usage = parts.shutil.disk_usage(house.root)._replace(free=10)
    monkeypatch.setattr(parts.shutil, "disk_usage", lambda path: usage)
    hub.requests.clear()
    with pytest.raises(OSError, match="disk full"):
        house.fetch()
    assert hub.requests == []


def test_the_token_stays_with_the_hub(
    house: House, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.pin()
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    hub.tokens.clear()
    assert house.fetch() == WANTED
    assert hub.tokens == {"Bearer hf_canary"}
    assert hub.stored == {None}, "LFS files lie on another host"


def test_a_gated_data_set_is_one_line_with_its_page_and_opens_for_an_accepted_token(
    house: House, hub: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories = {f"datasets/{NAME}": repository}
    repository.gated = True
    house.write(model=HUB_ENTRY | {"repo": "dataset", "files": ["*.parquet"]}).pin()
    says = r"gated .*licence at https://huggingface\.co/datasets/owner/name and set HF_TOKEN"
    for token in ("", "hf_stranger"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(ValueError, match=says) as why:
            house.fetch()
        assert "\n" not in str(why.value)
    repository.accepted = {"hf_canary"}
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    assert list(house.fetch()) == ["sub/data-0.parquet"]


def test_a_renamed_repository_is_followed(house: House, hub: Hub, repository: Repository) -> None:
    house.pin()
    hub.repositories, hub.moved = {"owner/new-name": repository}, {NAME: "owner/new-name"}
    assert house.fetch() == WANTED
    house.pin(update=True)


def test_a_renamed_file_is_looked_for_under_its_new_name(
    house: House, repository: Repository
) -> None:
    weights = repository.files["model.safetensors"]
    repository.commit("f" * 40, {"model.safetensors": None, "weights.safetensors": weights})
    house.write(model=HUB_ENTRY | {"files": ["model.safetensors"]})
    with pytest.raises(ValueError, match=r"no file 'model\.safetensors'; it has weights\.safetens"):
        house.pin()
    house.write(model=HUB_ENTRY | {"files": ["model.gguf"]})
    with pytest.raises(ValueError, match=r"no file that ends in \.gguf: correct `files`"):
        house.pin()


def test_planning_imports_no_network_library() -> None:
    code = (
        "import sys, reca.cli, reca.sources.fetch; reca.sources.fetch.list_sources();"
        "print({'requests', 'huggingface_hub'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
