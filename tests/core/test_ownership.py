"""A stage replaces only what it wrote itself: what else lies at --out or --work is refused, and nothing is touched."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from reca.cli import main
from reca.commands import interact
from reca.commands.clean import clean
from reca.commands.inputs import work_folder
from reca.config import compose
from reca.config.schema import ToyWorld
from reca.core import artifacts
from reca.core.artifacts import Stage
from reca.core.ownership import WorkFolder, is_derived
from reca.inference.imageset import ImageSetWriter

CAPTION = dict.fromkeys(("noise", "relation", "count", "two", "colour", "single_colour"), 0.3)
WORLD = json.dumps(asdict(ToyWorld(images=2, caption=CAPTION)))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a stage's output, another's, and files of the user's."""
    folder = tmp_path / "checkout"
    (folder / "mine/deep").mkdir(parents=True)
    (folder / "mine/deep/notes.txt").write_text("mine")
    (folder / "file").write_text("mine")
    monkeypatch.chdir(folder)
    make("data/world", "render")
    make("results/x/scores", "score", {"scores.json": "{}"})
    (folder / "link").symlink_to("data/world")
    return folder


def make(out: str, stage: str, files: dict[str, str] | None = None, **options: object) -> None:
    with Stage(stage, out, inputs={}, section={}, code="c", **options) as running:  # type: ignore[arg-type]
        for name, text in (files or {"data.parquet": "rows"}).items():
            (running.staging / name).write_text(text)


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder, links as such."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


REFUSED = {
    "a folder of the user's": ("mine", "holds deep/notes.txt"),
    "one with many stages": ("data", "holds world/data.parquet"),
    "another stage's": ("results/x/scores", "no record of stage 'render'"),
    "the working directory": (".", "holds the working directory"),
    "an ancestor": ("..", "holds the working directory"),
    "the root": ("/", "holds the working directory"),
    "a link": ("link", "is a link"),
    "a file": ("file", "is a file"),
    "below a file": ("file/out", "cannot write"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_stages_own_is_refused_and_untouched(here, capsys, case):
    out, said = REFUSED[case]
    before = tree(here)
    assert main(["render", "--section", WORLD, "--out", out]) == 2
    error = capsys.readouterr().err
    assert out in error and said in error and error.count("\n") == 1
    assert tree(here) == before


@pytest.mark.parametrize(
    "words",
    [
        ["choose", "--scores", "results/x/scores", "--out", "results/x/guidance.json"],
        ["choose", "--scores", "results/x/scores", "--out", "results/x/scores/deep/guidance.json"],
        ["choose", "--scores", "results/x/scores", "--out", "new/manifest.json"],
        ["paper", "--results", "results", "--out", "results"],
        ["report", "--experiment", "laptop", "--results", "results/x", "--out", "results/x"],
        ["render", "--section", WORLD, "--out", "r", "--log", "file"],
        ["compose", "laptop", "--out", "file"],
        ["draw", "a circle", "--out", "photo.png"],
        ["reconstruct", "photo.png", "--out", "photo.png"],
        ["score", "geneval", "mine", "--out", "mine"],
        ["score", "geneval", "mine", "--out", "results/x/scores"],
        ["score", "geneval", "mine", "--out", "theirs"],
    ],
)
def test_every_verb_refuses_what_it_did_not_write(here, capsys, words):
    Image.new("RGB", (8, 8)).save(here / "photo.png")
    (here / "theirs").mkdir()
    (here / "theirs/items.jsonl").write_text("a name that `reca score` writes, too")
    files = written(here)
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()
    assert ("--out" in error[-1] or "--log" in error[-1]) and len(error) == 1
    assert written(here) == files


def written(folder):
    """Files by content, without the indexes of hashes that reading leaves next to data."""
    files = (p for p in folder.rglob("*") if p.is_file() and not is_derived(p.name))
    return {p: p.read_bytes() for p in files}


def test_what_an_older_reca_left_is_named_as_such(here):
    """Snakemake has removed the manifest, and an older run.json lists no files: the remedy is another one."""
    run = here / "data/world/run.json"
    (here / "data/world/manifest.json").unlink()
    record = json.loads(run.read_text())
    run.write_text(
        json.dumps({k: v for k, v in record.items() if k not in ("owns", "seal", "manifest")})
    )
    before = tree(here)
    with pytest.raises(ValueError, match=r"of an older reca, .* remove the folder and run again"):
        make("data/world", "render")
    assert tree(here) == before


def test_a_roundabout_name_is_the_same_folder(here):
    """`world/..` would name nothing while `world` is moved away."""
    for out in ("data/world/../world", "data/new/../new", "./data/world/", "linked/world"):
        (here / "linked").is_symlink() or (here / "linked").symlink_to("data")
        make(out, "render", {"data.parquet": out})
        assert (Path(out) / "data.parquet").read_text() == out
    assert sorted(path.name for path in (here / "data").iterdir()) == ["new", "world"]


@pytest.mark.parametrize("place", ["in", "the very folder", "above"])
def test_a_folder_that_is_read_is_not_written(here, place):
    """Also where the very same stage wrote it, as when pre-training goes on from its own result."""
    out = {"in": "data/world/more", "the very folder": "data/world", "above": "data"}[place]
    read = Path("data/world/manifest.json")
    with pytest.raises(ValueError, match="which this stage reads"):
        Stage("render", out, inputs={"data": read}, section={})
    with pytest.raises(ValueError, match="which this stage reads"):
        Stage("render", out, inputs={}, section={}, reads=["data/world"])


@pytest.mark.parametrize(
    "state", ["whole", "no manifest", "killed", "changed manifest", "empty", "absent", "file gone"]
)
def test_a_stages_own_folder_is_replaced(here, state):
    """Snakemake removes manifest.json before a stage runs again, as our own messages advise."""
    folder, manifest = Path("data/world"), Path("data/world/manifest.json")
    (folder / ".reca-hashes.json").write_text("{}")  # an index of a reader's
    if state == "no manifest":
        manifest.unlink()
    elif state == "killed":  # while it wrote the manifest, its last file
        manifest.rename(folder / f".manifest.json.{'0' * 16}")
    elif state == "changed manifest":
        manifest.write_text(manifest.read_text().replace("render", "other"))
    elif state == "file gone":
        (folder / "data.parquet").unlink()
    elif state in ("empty", "absent"):
        folder = Path(f"data/{state}")
        folder.mkdir(exist_ok=True)
        if state == "absent":
            folder.rmdir()
    make(str(folder), "render", {"other.parquet": "new"})
    assert set(artifacts.verify(folder)["outputs"]) == {"other.parquet"}
    assert {path.name for path in folder.iterdir()} == {
        "other.parquet",
        "manifest.json",
        "run.json",
    }
    assert not list(Path("data").glob(".*"))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("extra", ["notes.txt", "deep/notes.txt", "link"])
def test_a_file_that_the_user_put_there_is_named(here, whole, extra):
    path = Path("data/world") / extra
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("/etc") if extra == "link" else path.write_text("mine")
    if not whole:
        Path("data/world/manifest.json").unlink()
    with pytest.raises(ValueError, match=f"holds {extra}, which stage 'render' did not write"):
        make("data/world", "render")
    assert os.path.lexists(path) and Path("data/world/data.parquet").exists()


def test_a_forged_list_of_files_does_not_count(here):
    Path("data/world/manifest.json").unlink()
    run = artifacts.read_json("data/world/run.json")
    run["owns"]["files"].append("notes.txt")
    artifacts.write_json("data/world/run.json", run)
    with pytest.raises(ValueError, match="no record of stage 'render'"):
        make("data/world", "render")


def test_a_file_put_there_while_the_stage_runs_is_kept(here):
    with (
        pytest.raises(ValueError, match=r"holds notes\.txt"),
        Stage("render", "data/world", inputs={}, section={}) as running,
    ):
        (running.staging / "data.parquet").write_text("new")
        Path("data/world/notes.txt").write_text("mine")
    assert Path("data/world/notes.txt").read_text() == "mine"
    assert Path("data/world/data.parquet").read_text() == "rows"


# ---- unfinished work ------------------------------------------------------------------------------
def test_a_work_folder_is_used_and_removed_only_where_it_is_ours(here):
    work = WorkFolder(Path("work/a"), "align")
    for _ in range(2):
        work.check([])
        work.claim()
        (work.path / "checkpoints").mkdir(exist_ok=True)
        (work.path / "log.jsonl").write_text("{}")
        (work.path / ".log.jsonl.0123456789abcdef").write_text("of a killed writer")
    with pytest.raises(ValueError, match="is not the work folder of stage 'sample'"):
        WorkFolder(work.path, "sample").check([])
    with work:
        (work.path / "notes.txt").write_text("mine")
    assert [path.name for path in work.path.iterdir()] == ["notes.txt"]
    for folder, said in {
        "work/a": "holds notes.txt", "mine": "holds deep", "link": "is a link", "file": "is a file",
        "data": "holds data/world", "data/world/w": "lies in data/world", ".": "holds the working",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=said):
            WorkFolder(Path(folder), "align").check([Path("data/world")])
    (here / "mine/log.jsonl").write_text("a name of ours alone is not enough")
    (here / "mine/deep/notes.txt").unlink()
    (here / "mine/deep").rmdir()
    with pytest.raises(ValueError, match=r"holds log\.jsonl"):
        WorkFolder(Path("mine"), "align").check([])


@pytest.mark.parametrize(("out", "work"), [("new", "new/work"), ("new", "new"), ("work", None)])
def test_unfinished_work_does_not_lie_in_the_output(here, out, work):
    """Found before the work: at the end of it the output would hold what the stage did not write."""
    with pytest.raises(ValueError, match="--work"):
        work_folder(Namespace(out=out, work=work), "align")
    assert not (here / out).exists()


def test_cleaning_keeps_what_no_stage_wrote(here):
    for name in ("data/world/notes.txt", "logs/x/a.log", "logs/notes.txt", "build/mine.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("mine")
    Path("logs/x/a.log").write_text("12:00:00 reca.align.log: step 1")
    Path(
        "results/x/scores/manifest.json"
    ).unlink()  # as Snakemake does before it makes a stage again
    WorkFolder(Path("work/x/a"), "align").claim()
    Path("data/mine").symlink_to(here / "mine")
    compose.write_resolved(compose.load("laptop"), "build/laptop.yaml")
    left = {str(path) for path in clean()}
    stays = {
        f"data/world/{name}" for name in ("notes.txt", "data.parquet", "manifest.json", "run.json")
    }
    assert left == stays | {"data/mine", "logs/notes.txt", "build/mine.yaml"}
    assert tree(here).keys() == left | {"file", "link", "mine/deep/notes.txt"}
    assert not Path("results").exists() and not Path("work").exists()


def test_cleaning_knows_logs_benchmarks_and_downloads(here):
    known = {"kind": "mirror", "licence": "l", "used_by": ["u"], "revision": None}
    known |= {"files": ["whole.bin"]}
    header = "s\th:m:s\tmax_rss\n"
    ours = {
        "logs/x/printed.log": "3 cells",
        "benchmarks/x/printed.tsv": header,
        "logs/x/late.log": "a warning\n12:00:00 reca.align.log: step 1\n",
        "logs/x/failed.log": "reca align: no such folder\n",
        "logs/x/empty.log": "",
        "work/downloads/known/whole.bin": "all",
        "work/downloads/any/deep/a.bin.part": "half",
        "work/downloads/any/deep/a.bin.part.json": "{}",
        f"work/downloads/any/.a.bin.{'0f' * 8}": "half",
    }
    mine = {
        "logs/mine.log": "day 1: hungry",
        "benchmarks/mytable.tsv": "name\tscore\n",
        "work/downloads/mine.bin": "mine",
        "work/downloads/mine.part": "mine",
        "work/downloads/known/mine.bin": "mine",
        "config/sources.yaml": json.dumps({"sources": {"known": known}}),
    }
    for name, text in {**ours, **mine}.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    left = {str(path) for path in clean()}
    assert left == mine.keys() - {"config/sources.yaml"}
    assert tree(here).keys() == {*mine, "file", "link", "mine/deep/notes.txt"}


@pytest.mark.parametrize("link", ["work", "work/downloads", "work/downloads/source"])
def test_cleaning_follows_no_link(here, tmp_path, link):
    shared = tmp_path / "shared"
    (shared / "downloads/source").mkdir(parents=True)
    for name in ("a", "downloads/b", "downloads/source/c.part", "downloads/source/d"):
        (shared / name).write_text("mine")
    Path(link).parent.mkdir(parents=True, exist_ok=True)
    Path(link).symlink_to(shared / Path(link).relative_to("work"))
    before = tree(shared)
    left = {str(path) for path in clean()}
    assert tree(shared) == before and Path(link).is_symlink()
    assert left == {link}


def test_a_set_of_pictures_replaces_only_a_set(here):
    with (
        pytest.raises(ValueError, match=r"contains deep/notes\.txt"),
        ImageSetWriter("mine", "folder"),
    ):
        pass
    for _ in range(2):
        with ImageSetWriter("set", "folder") as writer:
            writer.add("0001", 0, Image.new("RGB", (8, 8)), {})
    assert len(list(Path("set").rglob("*.png"))) == 1


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_a_drawn_picture_is_replaced(here, ending):
    for _ in range(2):
        interact._save(Image.new("RGB", (8, 8)), interact._picture_file(f"drawn{ending}"))
    with pytest.raises(ValueError, match="is the input image"):
        interact._picture_file(f"drawn{ending}", f"drawn{ending}")


# ---- modes ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_the_umask_is_respected(here, umask, file, folder):
    before = os.umask(umask)
    try:
        make("private", "render")
        artifacts.write_atomic("alone.txt", "text")
        for container in ("folder", "tar"):
            with ImageSetWriter(container, container) as writer:  # type: ignore[arg-type]
                writer.add("0001", 0, Image.new("RGB", (8, 8)), {})
    finally:
        os.umask(before)
    for name in ("private", "folder"):
        assert Path(name).stat().st_mode & 0o777 == folder
    for name in (
        "private/data.parquet",
        "private/manifest.json",
        "private/run.json",
        "alone.txt",
        "tar",
    ):
        assert Path(name).stat().st_mode & 0o777 == file, name


# ---- room -----------------------------------------------------------------------------------------
def test_room_is_looked_for_before_the_work(here):
    with (
        pytest.raises(
            ValueError, match=r"out: cannot write \d{18} bytes here \(only \d+ bytes are free\)"
        ),
        Stage("render", "out", inputs={}, section={}, needs=10**17 + 1),
    ):
        raise AssertionError("the work began")
    assert not list(here.glob(".out*"))
