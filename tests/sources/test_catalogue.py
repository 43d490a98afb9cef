"""The catalogue of downloads: complete, licensed, and its mistakes told in one line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from reca.sources.catalogue import load_sources
from reca.sources.fetch import fetch, list_sources
from tests.sources.conftest import CATALOGUE, HUB_ENTRY, ROOT, House


# ---- the catalogue of the paper ------------------------------------------------------------------
def raw_entries() -> dict[str, dict[str, object]]:
    return yaml.safe_load(CATALOGUE.read_text())["sources"]


@pytest.mark.parametrize("name", sorted(raw_entries()))
def test_every_entry_states_origin_revision_and_licence(name: str) -> None:
    entry = raw_entries()[name]
    assert entry["kind"] in ("hub", "url", "git-raw", "mirror")
    assert str(entry["licence"]).strip()
    assert "revision" in entry, "an unknown revision is written as null, never left out"
    revision = entry["revision"]
    assert revision is None or re.fullmatch(r"[0-9a-f]{40}", str(revision))
    if entry["kind"] == "git-raw":
        assert revision is not None
    text = json.dumps(entry["files"])
    assert not re.search(r"/(main|master|latest|HEAD)/", text)


def test_catalogue_loads_and_names_every_family() -> None:
    known = load_sources(CATALOGUE)
    ids = {source.id for source in known.values()}
    for needed in (
        "brivangl/midjourney-v6-llava",
        "BLIP3o/BLIP3o-60k",
        "jackyhate/text-to-image-2M",
        "liuhaotian/LLaVA-Instruct-150K",
        "showlab/show-o-w-clip-vit-512x512",
        "showlab/magvitv2",
        "sanaka87/Show-o-512x512-RecA",
        "wusize/harmon",
        "sanaka87/Harmon-1.5B-RecA",
        "wusize/openuni",
        "sanaka87/OpenUni-RecA",
        "ByteDance-Seed/BAGEL-7B-MoT",
        "sanaka87/BAGEL-RecA",
        "deepseek-ai/Janus-Pro-7B",
        "deepseek-community/Janus-Pro-1B",
        "facebook/mask2former-swin-small-coco-instance",
        "stepfun-ai/GEdit-Bench",
    ):
        assert needed in ids
    assert {"llava-images-coco", "llava-images-ocr-vqa", "reconstruction-prompts"} <= set(known)


def test_no_remote_code_is_ever_fetched() -> None:
    for source in load_sources(CATALOGUE).values():
        if source.kind == "hub" and source.repo == "model":
            for file in source.files:
                assert file.path != "*" and not file.path.endswith(".py"), source.name


def test_unpinned_and_pinned_entries_are_told_apart(tmp_path: Path) -> None:
    pinned = {s.source.name: s.pinned for s in list_sources(sources=CATALOGUE, lock=tmp_path / "l")}
    assert pinned["geneval"] and pinned["wise"] and pinned["dpg-questions"]
    assert not pinned["magvitv2"] and not pinned["midjourney-v6-llava"]


def benchmark_mirror() -> Path:
    named = os.environ.get("RECA_BENCHMARK_MIRROR")
    folder = Path(named) if named else ROOT.parent / "shared" / "benchmarks" / "data"
    if not folder.is_dir():
        pytest.skip("no benchmark mirror: set RECA_BENCHMARK_MIRROR to a folder that holds one")
    return folder


def test_the_mirror_gives_every_pinned_benchmark_file(tmp_path: Path) -> None:
    mirror = benchmark_mirror()
    house = House(tmp_path)
    house.way["sources"] = CATALOGUE
    expected = 0
    for name, source in load_sources(CATALOGUE).items():
        if all(file.sha256 for file in source.files):
            expected += len(source.files)
            out = tmp_path / "out" / name
            records = fetch(name, out, **house.way, mirror=mirror)  # type: ignore[arg-type]
            assert [r.sha256 for r in records] == [file.sha256 for file in source.files]
            assert all(r.via == "mirror" and str(mirror) not in r.url for r in records)
    assert expected == 22, "the rows of the mirror's own table"


# ---- sources.yaml: errors in one line ------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "ftp"}, r"sources\.model\.kind = 'ftp': must be one of hub, url"),
        ({"revision": "main"}, r"model\.revision = 'main': must match \^\[0-9a-f\]\{40\}\$"),
        ({"licence": " "}, r"model\.licence = ' ': must match"),
        ({"licence": None}, r"model\.licence = None: must be a text"),
        ({"used_by": []}, r"model\.used_by = \[\]: must hold at least 1"),
        ({"id": "no-owner"}, r"model\.id = 'no-owner': must match"),
        ({"id": None}, r"model\.id is missing: must be owner/name"),
        ({"colour": 1}, r"model\.colour = 1: unknown key; allowed: certainty"),
        ({"files": []}, r"model\.files = \[\]: must hold at least 1"),
        ({"files": ["../x"]}, r"model\.files\[0\]: file name '\.\./x' is refused"),
        ({"files": ["a", "A"]}, r"files\[1\]: a second file would be saved as 'a'"),
        ({"files": [{"path": "a", "sha256": "abc"}]}, r"files\[0\]\.sha256 = 'abc': must match"),
        (
            {"files": [{"path": "a", "bytes": "9"}]},
            r"files\[0\]\.bytes = '9': must be a whole number or null",
        ),
        (
            {"files": [{"path": "a", "bytes": True}]},
            r"files\[0\]\.bytes = True: must be a whole number or null",
        ),
        ({"files": [{"path": "a", "bytes": -1}]}, r"files\[0\]\.bytes = -1: must be at least 0"),
        (
            {"files": [{"path": "*", "sha256": "0" * 64}]},
            r"files\[0\]\.path = '\*': a pattern is for hub",
        ),
        (
            {"kind": "git-raw", "files": ["*.json"]},
            r"files\[0\]\.path = '\*\.json': a pattern is for hub",
        ),
        ({"kind": "url"}, r"files\[0\]\.url is missing"),
        ({"kind": "url", "files": [{"url": "http://a.org/f"}]}, r"files\[0\]: .* only https"),
    ],
)
def test_wrong_entries(tmp_path: Path, change: dict[str, object], says: str) -> None:
    house = House(tmp_path).write(model=HUB_ENTRY | change)
    with pytest.raises(ValueError, match=says) as caught:
        load_sources(house.paths["sources"])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(house.paths["sources"]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sources: [", "not valid YAML"),
        ("sources: 3", "expected a mapping"),
        ("sources: {a: 3}", r"sources\.a = 3: must be a section with kind"),
        ("sources: {Bad_Name: {}}", "a name holds lower-case"),
        ("sources: {a: {kind: hub, kind: url}}", "'kind' occurs twice"),
        ("sources: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_wrong_documents(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        load_sources(path)
    assert "\n" not in str(caught.value)


def test_missing_document_and_unknown_name(tmp_path: Path, house: House) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        load_sources(tmp_path / "absent.yaml")
    with pytest.raises(ValueError, match=r"no source 'other'; `reca sources`"):
        house.fetch("other")
