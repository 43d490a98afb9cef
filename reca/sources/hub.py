"""Listing and downloads of Hugging Face repositories, through `huggingface_hub` (xet where the hub offers it).

The library lists, resolves, transfers and retries; what arrives still has to match our hashes (see `parts`).
Its `hf_hub_download` throws a partial file away when the process dies, so we give its transfer functions a
part of our own, which the next call continues.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import HfFileMetadata, http_get, is_xet_available, xet_get
from huggingface_hub.utils import build_hf_headers

from reca.sources.catalogue import HEX_DIGITS, Source, SourceFile, is_hex
from reca.sources.checks import Digest, check_url, without_queries
from reca.sources.parts import Again, Part, Policy

TRANSIENT = (408, 425, 429)


def token() -> str | bool:
    """HF_TOKEN, or False, which keeps `huggingface_hub` from looking for a stored one."""
    return os.environ.get("HF_TOKEN") or False


def file_url(source: Source, path: str, endpoint: str) -> str:
    """The address of a file at the revision of `source`."""
    return hf_hub_url(
        str(source.id), path, repo_type=source.repo, revision=source.revision, endpoint=endpoint
    )


def list_files(source: Source, endpoint: str, policy: Policy) -> tuple[str, dict[str, SourceFile]]:
    """Commit and files of a hub repository, with the hashes that the hub states for them."""
    check_url(endpoint)
    api = HfApi(endpoint=endpoint, token=token())
    try:
        with _explained(source, endpoint):
            info = api.repo_info(
                str(source.id),
                repo_type=source.repo,
                revision=source.revision,
                timeout=policy.read_seconds,
                files_metadata=True,
            )
    except (Again, OSError) as error:
        raise ValueError(
            f"{source.name}: cannot list {source.id} ({error}); check the network and, for a "
            "gated repository, HF_TOKEN; or use a mirror folder"
        ) from error
    commit = str(info.sha)
    if not is_hex(commit, HEX_DIGITS["revision"]):
        raise ValueError(f"{source.name}: {source.id} states no commit, but {commit!r}")
    _check_commit(source, commit)
    files = (_file(item) for item in getattr(info, "siblings", None) or ())
    return commit, {file.path: file for file in files}


def _file(item: Any) -> SourceFile:
    return SourceFile(
        path=item.rfilename,
        save_as=item.rfilename,
        sha256=item.lfs.sha256 if item.lfs else None,
        git_blob=None if item.lfs else item.blob_id,
        bytes=item.lfs.size if item.lfs else item.size,
    )


def _check_commit(source: Source, commit: str | None) -> None:
    if source.revision not in (None, commit):
        raise ValueError(f"{source.name}: asked for {source.revision}, the hub gave {commit}")


# ---- one file ------------------------------------------------------------------------------------
def download(
    source: Source,
    file: SourceFile,
    target: Path,
    *,
    endpoint: str,
    policy: Policy,
    stop: threading.Event,
) -> Digest:
    """Fetch one file at its commit into `target`, which appears last and whole.

    ValueError where it is refused (wrong hash or revision, gated, missing), OSError where it cannot be had now.
    """
    url = file_url(source, file.path, endpoint)
    check_url(url)

    def receive(part: Part) -> None:
        with _explained(source, url, part):
            found = get_hf_file_metadata(url, token=token(), endpoint=endpoint)
            if found.commit_hash is None:
                raise FileMetadataError("no commit is stated")
            _check_commit(source, found.commit_hash)
            _transfer(part, found)

    with Part(url, target, file.expected, policy, stop) as part:
        return part.fill(receive)


def _transfer(part: Part, found: HfFileMetadata) -> None:
    headers = build_hf_headers(token=token())
    total = found.size or 0
    bar = cast(Any, part.bar)
    if found.xet_file_data is not None and is_xet_available():
        part.restart()  # xet fills the file in any order, so it has no whole beginning
        part.check_room(total)
        xet_get(
            incomplete_path=part.path,
            xet_file_data=found.xet_file_data,
            headers=headers,
            expected_size=found.size,
            displayed_filename=part.target.name,
            tqdm_class=bar,
        )
        return
    if part.known().get("etag") != found.etag or part.size > total:
        part.restart()
    part.check_room(total)
    part.note(found.etag, total)
    http_get(
        part.url,
        part.file,
        resume_size=part.size,
        headers=headers,
        expected_size=found.size,
        displayed_filename=part.target.name,
        tqdm_class=bar,
    )


def abort() -> None:
    """End the transfers of xet, which run outside Python; others end at their next chunk."""
    if "hf_xet" in sys.modules:
        from huggingface_hub.utils._xet import abort_xet_session

        abort_xet_session()


# ---- errors --------------------------------------------------------------------------------------
@contextmanager
def _explained(source: Source, url: str, part: Part | None = None) -> Iterator[None]:
    """Errors of `huggingface_hub` as ours: ValueError in one line if final, Again if it may pass."""
    where = f"{source.name}: {source.id}"
    folder = "datasets/" if source.repo == "dataset" else ""
    page = f"{constants.HUGGINGFACE_CO_URL_HOME}{folder}{source.id}"
    # What is listed is what sources.yaml states; only a download takes its revision from the lock.
    remedy = "correct `revision` in sources.yaml"
    if part is not None:
        remedy = f"run `reca pin {source.name} --update`"
    try:
        yield
    except GatedRepoError as error:
        raise ValueError(
            f"{where} is gated (access denied, {error.response.status_code}); accept the licence at "
            f"{page} and set HF_TOKEN, or use a mirror folder"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{where}: no such repository, or a private one ({error.response.status_code}); check "
            "the id and HF_TOKEN, or use a mirror folder"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{where} has no revision {source.revision} (404); {remedy}") from error
    except RemoteEntryNotFoundError as error:
        raise ValueError(
            f"{url}: no such file at this revision (404); check `files` of {source.name}"
        ) from error
    except OfflineModeIsEnabled as error:
        raise ValueError(
            f"{url}: offline (HF_HUB_OFFLINE is set); unset it, or use a mirror folder"
        ) from error
    except FileMetadataError as error:
        raise ValueError(
            f"{url}: the answer is not a hub's (an HTML page of a proxy?); check HF_ENDPOINT and "
            "the network, or use a mirror folder"
        ) from error
    except HfHubHTTPError as error:
        raise _of_status(error, url) from error
    except HTTPError as error:
        raise Again(f"no answer ({type(error).__name__})") from error
    except OSError as error:
        raise _of_system(error, part) from error


def _of_status(error: HfHubHTTPError, url: str) -> Exception:
    status = error.response.status_code
    if status >= 500 or status in TRANSIENT:
        after = error.response.headers.get("Retry-After", "")
        return Again(f"the server answered {status}", float(after) if after.isdigit() else 0.0)
    if status in (401, 403):
        return ValueError(
            f"{url}: access denied ({status}); accept the licence at its page and set HF_TOKEN, or "
            "use a mirror folder"
        )
    return ValueError(f"{url}: the server answered {status} {error.response.reason_phrase}")


def _of_system(error: OSError, part: Part | None) -> Exception:
    if part is not None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return part.disk_full((part.expected.bytes or 0) - part.size, 0)
    if error.errno is None:  # a body of another size than announced
        return Again(without_queries(" ".join(str(error).split())))
    return error
