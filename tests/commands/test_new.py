"""`reca new`: a commented experiment on images of one's own, tried with real photographs."""

from __future__ import annotations

import importlib.util
import io
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from reca.cli import main
from reca.config import compose, draft
from reca.data.survey import kind_of, open_images, survey

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = {
    "skimage": ("data/astronaut.png", "data/camera.png", "data/coffee.png", "data/rocket.jpg"),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}


@pytest.fixture
def photos(tmp_path):
    """Six photographs, one of them grey, one with a caption."""
    folder = tmp_path / "my 'photos' # ${HOME}: \"all\""
    folder.mkdir()
    for package, names in PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            pytest.skip(f"{package} is not installed; its sample photographs are read")
        for name in names:
            shutil.copy(Path(spec.origin).parent / name, folder)
    (folder / "rocket.txt").write_text("a rocket on its launch pad\n")
    return folder


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working directory with the configuration of this repository, for files to be written to."""
    place = tmp_path / "checkout"
    shutil.copytree(ROOT / "config", place / "config")
    (place / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(place)
    return place / "config/experiment"


@pytest.mark.parametrize("model", ["bagel_7b", "showo_tiny"])
def test_an_experiment_is_written_checked_and_planned(photos, checkout, model, capsys):
    (photos / "cut.png").write_bytes((photos / "coffee.png").read_bytes()[:4000])
    (photos / "again.jpg").write_bytes((photos / "china.jpg").read_bytes())
    assert main(["new", "my_photos", "--model", model, "--images", str(photos)]) == 0
    text = capsys.readouterr().out
    for said in (
        f"{photos} (folder):",
        "8 images; 1 unreadable",
        "cut.png: damaged or truncated PNG",
        "formats: 4 JPEG, 3 PNG",
        "sizes: short side 400 to 512 pixels, median 427",
        "captions: 1 of 7 images, 6 to 6 words",
        "1 grey, 0 of one colour",
        "duplicates: 1 files have the bytes of another one",
        "my_photos.yaml: written; valid",
        "parameters",
        "samples of reca, each image",
        "run it: snakemake --cores all --config experiment=my_photos",
    ):
        assert said in text
    assert ("are smaller than the model's 1024 pixels" in text) == (model == "bagel_7b")
    written = (checkout / "my_photos.yaml").read_text()
    assert "# 12.50% of the images cannot be read" in written and written.count("#") > 8
    experiment = compose.load("my_photos")
    assert experiment.data["reconstruct"].path == str(photos.resolve())
    assert set(experiment.models) == {model} and experiment.cost.basis == "estimate"
    example = compose.load({"bagel_7b": "paper_bagel", "showo_tiny": "laptop_showo"}[model])
    assert experiment.models[model].align == example.models[model].align
    assert main(["check", "my_photos"]) == 0
    capsys.readouterr()
    assert main(["new", "my_photos", "--model", model, "--images", str(photos)]) == 2
    assert "it is not replaced" in capsys.readouterr().err
    assert (checkout / "my_photos.yaml").read_text() == written


def test_every_model_gets_a_valid_experiment(photos, checkout):
    from reca.config.schema import DataSource

    source = DataSource(kind="folder", path=str(photos))
    for model in draft.model_names():
        if model.endswith(("_network", "_continued")):
            continue
        name = f"new_{model}"
        benchmark = "laptop" if "tiny" in model else "geneval"
        text = draft.text_of(name, model, source, benchmark, draft.precedent(model), 0.0)
        draft.write(draft.target(name), text)


def test_the_recipe_is_that_of_the_models_own_experiment(photos, checkout):
    """Not of one that goes on from other weights (OpenUni's own two stages), of a draft, or of a broken file."""
    for model, name in {
        "openuni_b_512": "paper_openuni_b",
        "openuni_l_512": "paper_openuni_l",
        "harmon_15b": "paper_harmon_15b",
        "showo_tiny": "laptop_showo",
    }.items():
        (checkout / "broken.yaml").write_text("a: [\n")
        assert main(["new", "first", "--model", model, "--images", str(photos)]) == 0
        example = draft.precedent(model)
        assert example is not None and example.experiment == name
        assert example.model.weights == compose.model_config(model).weights
        (checkout / "first.yaml").unlink()


def test_what_may_be_unreadable_is_valid_yaml_and_only_said_where_a_run_would_stop():
    assert draft._threshold(0.0005, {}) == []
    for share, options in ((12 / 13, {}), (0.5, {"caption": "text"})):
        line = draft._threshold(share, options)[-1].partition("# options: ")[2]
        assert yaml.safe_load(line) == {
            **options,
            "max_unreadable": min(1.0, round(share * 1.1 + 1e-4, 4)),
        }


def test_what_is_wrong_is_one_line_and_nothing_is_written(photos, checkout, tmp_path, capsys):
    empty, mixed = tmp_path / "empty", tmp_path / "mixed"
    empty.mkdir()
    shutil.copytree(photos, mixed)
    (mixed / "a.tar").write_bytes(b"")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    before = sorted(checkout.iterdir())
    for arguments, said in (
        (["x", "--model", "bagel_8b", "--images", str(photos)], "did you mean 'bagel_7b'"),
        (["X y", "--model", "bagel_7b", "--images", str(photos)], "a name is made of a-z"),
        (["laptop", "--model", "bagel_7b", "--images", str(photos)], "it is not replaced"),
        (
            ["x", "--model", "harmon_15b_network", "--images", str(photos)],
            "is a part of other configurations",
        ),
        (["x", "--model", "bagel_7b", "--images", ""], "--images '': names nothing"),
        (["x", "--model", "bagel_7b", "--images", "."], "holds the working directory"),
        (["x", "--model", "bagel_7b", "--images", "nowhere"], "nowhere: no such file or folder"),
        (["x", "--model", "bagel_7b", "--images", str(empty)], "holds nothing; give a folder"),
        (["x", "--model", "bagel_7b", "--images", str(mixed)], "holds tar and folder"),
        (["x", "--model", "bagel_7b", "--images", str(broken)], "none of the images can be read"),
        (
            ["x", "--model", "bagel_7b", "--images", str(photos), "--benchmark", "genevil"],
            "benchmark/genevil",
        ),
    ):
        assert main(["new", *arguments]) == 2
        assert said in capsys.readouterr().err
        assert sorted(checkout.iterdir()) == before


def test_tars_and_parquet_are_looked_at_too(photos, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    shards, tables = tmp_path / "shards", tmp_path / "tables"
    shards.mkdir()
    tables.mkdir()
    with tarfile.open(shards / "0.tar", "w") as tar:
        for path in sorted(photos.iterdir()):
            tar.add(path, path.name)
    images = [path.read_bytes() for path in sorted(photos.iterdir()) if path.suffix != ".txt"]
    table = pa.table({"image": images, "text": [f"photo {i}" for i in range(len(images))]})
    parquet.write_table(table, tables / "0.parquet")
    for folder, kind, captions in ((shards, "tar", 1), (tables, "parquet", 6)):
        dataset, found, options = open_images(folder)
        assert found == kind == kind_of(folder)
        assert options == ({"caption": "text"} if kind == "parquet" else {})
        seen = survey(dataset, workers=0)
        captioned = [look for look in seen.looks if look.caption is not None]
        assert (seen.total, len(seen.looks), len(captioned)) == (6, 6, captions)
    assert survey(dataset, workers=2, most=3).read == 3
    parquet.write_table(table.rename_columns(["jpg", "text"]), tables / "0.parquet")
    with pytest.raises(ValueError, match="has no column 'image', but jpg, text; rename the column"):
        open_images(tables)


def test_colours_of_known_images(tmp_path):
    for name, colour in {"red": (200, 0, 0), "grey": (90, 90, 90)}.items():
        buffer = io.BytesIO()
        Image.new("RGB", (30, 20), colour).save(buffer, "PNG")
        (tmp_path / f"{name}.png").write_bytes(buffer.getvalue())
    lines = list(survey(open_images(tmp_path)[0], workers=0).lines(25))
    assert lines[2].startswith("sizes: short side 20 to 20 pixels") and "1.50" in lines[2]
    assert lines[3] == "  2 are smaller than the model's 25 pixels and are enlarged"
    assert "R 145 ± 0, G 45 ± 0, B 45 ± 0; 1 grey, 2 of one colour" in lines[5]
