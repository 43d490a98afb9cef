"""The loopback hub, asked by `huggingface_hub` as the real one is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get

from tests.hub.client import served
from tests.hub.server import COMMIT, PAGE, Hub, Repository, blob, sha

NEXT = "f" * 40
FILES = {"config.json": b"{}", "sub/deep/model.bin": b"weights" * 100}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with served({"owner/name": Repository.of(FILES)}, monkeypatch) as server:
        yield server


def api(hub: Hub, token: str | bool = False) -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def test_files_come_whole_from_hub_and_store(hub: Hub, tmp_path: Path) -> None:
    for name, data in FILES.items():
        found = api(hub, "hf_canary").hf_hub_download("owner/name", name, cache_dir=tmp_path)
        assert Path(found).read_bytes() == data and COMMIT in found
    assert hub.tokens == {"Bearer hf_canary"} and hub.stored == {None}


def test_info_has_hashes_only_on_request(hub: Hub) -> None:
    plain = api(hub).model_info("owner/name")
    assert (plain.sha, [file.size for file in plain.siblings or ()]) == (COMMIT, [None, None])
    small, large = api(hub).model_info("owner/name", files_metadata=True).siblings or ()
    assert small.lfs is None and small.blob_id == blob(b"{}")
    assert large.lfs is not None and large.lfs.sha256 == sha(FILES["sub/deep/model.bin"])


def test_trees_have_folders_and_pages(hub: Hub) -> None:
    shallow = [entry.path for entry in api(hub).list_repo_tree("owner/name")]
    assert shallow == ["config.json", "sub"]
    deep = [entry.path for entry in api(hub).list_repo_tree("owner/name", recursive=True)]
    assert deep == ["config.json", "sub", "sub/deep", "sub/deep/model.bin"]
    hub.repositories["owner/name"].files.update({f"{n:03}.txt": b"" for n in range(PAGE)})
    assert len(list(api(hub).list_repo_tree("owner/name", recursive=True))) == PAGE + 4
    with pytest.raises(RemoteEntryNotFoundError):
        list(api(hub).list_repo_tree("owner/name", "absent"))


def test_a_range_goes_on_where_a_body_broke_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    url, whole = hf_hub_url("owner/name", "sub/deep/model.bin", endpoint=hub.url), io.BytesIO()
    hub.cut = 300
    with pytest.raises(HTTPError):
        http_get(url, whole, expected_size=700, _nb_retries=0)
    assert len(whole.getvalue()) == 300
    hub.cut = None
    http_get(url, whole, resume_size=300, expected_size=700)
    assert whole.getvalue() == FILES["sub/deep/model.bin"]
    assert hub.ranges[-1] == ("sub/deep/model.bin", 300)


def test_what_is_absent_has_the_errors_of_the_real_hub(hub: Hub, tmp_path: Path) -> None:
    for kind, name, file, revision in (
        (RemoteEntryNotFoundError, "owner/name", "absent.json", None),
        (RevisionNotFoundError, "owner/name", "config.json", NEXT),
        (RepositoryNotFoundError, "owner/absent", "config.json", None),
    ):
        with pytest.raises(kind):
            api(hub).hf_hub_download(name, file, revision=revision, cache_dir=tmp_path)


def test_a_gate_hides_files_and_not_their_names(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories["owner/name"]
    repository.gated, repository.accepted = True, {"hf_canary"}
    assert api(hub).model_info("owner/name").gated == "auto"
    for token in (False, "hf_stranger"):
        with pytest.raises(GatedRepoError):
            api(hub, token).hf_hub_download("owner/name", "config.json", cache_dir=tmp_path)
    assert api(hub, "hf_canary").hf_hub_download("owner/name", "config.json", cache_dir=tmp_path)


def test_a_renamed_repository_and_a_former_commit_stay_reachable(hub: Hub, tmp_path: Path) -> None:
    hub.repositories = {"owner/new": hub.repositories.pop("owner/name")}
    hub.moved = {"owner/name": "owner/new"}
    hub.repositories["owner/new"].commit(NEXT, {"config.json": b'{"new": 1}'})
    assert api(hub).model_info("owner/name").id == "owner/new"
    for revision, data in ((None, b'{"new": 1}'), (COMMIT, b"{}")):
        found = api(hub).hf_hub_download(
            "owner/name", "config.json", revision=revision, cache_dir=tmp_path
        )
        assert Path(found).read_bytes() == data
