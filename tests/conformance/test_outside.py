"""A family of another package: found by its entry point, configured, fingerprinted, checked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from reca.cli import main
from reca.commands.code import stage_code
from reca.config import compose
from reca.conformance.resolve import model_of
from reca.core.fingerprints import SourceTree
from reca.models import registry
from tests.conformance import outside

ROOT = Path(__file__).parents[2]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the example, installed; its folder."""
    copy = shutil.copytree(outside.EXAMPLE, tmp_path / "example")
    outside.install(monkeypatch, outside.write_record(tmp_path / "site"), copy)
    yield copy / "my_model"
    outside.forget()


def test_a_family_is_found_by_its_entry_point(package):
    assert registry.is_runnable("my_model") and not registry.is_runnable("other")
    assert registry.find_family("my_model").title == "My model"
    assert registry.family_module("my_model") == "my_model.model"
    assert registry.brought_config() == [package / "config"]
    with pytest.raises(ValueError, match=r"'other' is not known.*reca.models\): my_model"):
        registry.find_family("other")
    with pytest.raises(ValueError, match="cannot be pre-trained"):
        registry.pretraining_module("my_model")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("my_model:NOTHING", "cannot be loaded"),
        ("my_modem:FAMILY", "cannot be loaded"),
        ("my_model:__doc__", "it must be a reca.models.registry.Family with name 'wrong'"),
        ("my_model:FAMILY", "it must be a reca.models.registry.Family with name 'wrong'"),
    ],
)
def test_a_wrong_entry_point_is_named(package, tmp_path, monkeypatch, value, said):
    monkeypatch.syspath_prepend(str(outside.write_record(tmp_path / "more", "wrong", value)))
    with pytest.raises(ValueError, match=said) as caught:
        registry.find_family("wrong")
    assert f"entry point wrong = {value} (group reca.models)" in str(caught.value)


def test_its_configuration_composes_and_is_checked(package):
    model = compose.model_config("my_model_tiny")
    assert model.family == "my_model" and model.align.steps == 60
    chosen = ["+model@models.mine=my_model_tiny", "models.mine.family=my_modem"]
    with pytest.raises(ValueError, match=r"models.mine.family = 'my_modem'.*installed package"):
        compose.load("laptop_smoke", chosen)
    chosen[1] = "models.mine.sampler.options={order: random}"
    with pytest.raises(ValueError, match=r"sampler.options.order = 'random': unknown option"):
        compose.load("laptop_smoke", chosen)


def test_an_edit_of_the_package_runs_its_stages_again(package):
    def codes():
        tree = SourceTree({"my_model": package})
        return {
            (stage, family): stage_code(stage, family, tree=tree)
            for stage in ("cache", "align", "sample")
            for family in ("my_model", "showo")
        }

    (package / "part.py").write_text("SCALE = 1\n")
    network = package / "network.py"
    network.write_text("from . import part\n" + network.read_text())  # relative imports count
    before = codes()
    for edited in (package / "part.py", package / "__init__.py", package / "model.py"):
        edited.write_text(edited.read_text() + "\nEDITED = 1\n")
        after = codes()
        changed = {key for key in after if after[key] != before[key]}
        assert changed == {(stage, "my_model") for stage in ("cache", "align", "sample")}, edited
        before = after
    network.write_text(network.read_text() + "\n# a comment\n")
    assert codes() == before


def test_planning_reads_entry_points_for_strangers_only():
    code = (
        "import sys; from reca.config.compose import load; load('laptop');"
        "from reca.commands.code import stage_code; stage_code('align', 'showo');"
        "from reca.models.registry import is_runnable; assert is_runnable('showo');"
        "from reca.models import registry; assert not registry.brought.cache_info().misses;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# ---- reca new ------------------------------------------------------------------------------------
@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two images without captions, and a working directory whose configuration may be written to."""
    shutil.copytree(ROOT / "config", tmp_path / "checkout/config")
    monkeypatch.chdir(tmp_path / "checkout")
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in {"a": "red", "b": "blue"}.items():
        Image.new("RGB", (20, 20), colour).save(folder / f"{name}.png")
    return folder


def _new(photos, name="mine"):
    return main(["new", name, "--model", "my_model_tiny", "--images", str(photos)])


def test_a_new_experiment_says_what_its_model_and_images_allow(package, photos):
    assert _new(photos) == 0
    text = Path("config/experiment/mine.yaml").read_text()
    assert "arms: [base, reca]  # also: shuffled (control); not sft: it needs a caption" in text
    assert "published" not in text
    experiment = compose.load("mine")
    assert experiment.cost.hours == 0.17  # the ten minutes of its resources
    # What the comments say works as it stands.
    stub = [line[2:] for line in text.splitlines() if line.startswith(("#   - ", "#   models"))]
    entry, recipe = (line.strip() for line in stub)
    text = text.replace("  - _self_\n", f"  {entry}\n  - _self_\n") + f"{recipe}\n"
    Path("config/experiment/mine.yaml").write_text(text)
    experiment = compose.load("mine")
    assert list(experiment.models["my_model_tiny"].align.active()) == ["reca", "i2t"]
    assert experiment.data["answer"].kind == "world"


def test_a_recipe_with_i2t_gets_its_data_and_one_with_t2i_needs_captions(package, photos, capsys):
    described = package / "config/model/my_model_tiny.yaml"
    plain = described.read_text()
    described.write_text(plain.replace("batch: 4}}", "batch: 4}, i2t: {batch: 2}}"))
    assert _new(photos) == 0
    assert compose.load("mine").data["answer"].world is not None
    described.write_text(plain.replace("batch: 4}}", "batch: 4}, t2i: {batch: 2}}"))
    assert _new(photos, "other") == 2
    assert "2 of 2 images have no caption, but the recipe of my_model" in capsys.readouterr().err
    assert not Path("config/experiment/other.yaml").exists()
    for name in ("a", "b"):
        (photos / f"{name}.txt").write_text("a square")
    assert _new(photos, "other") == 0
    assert "also: sft (" in Path("config/experiment/other.yaml").read_text()


# ---- check-model ---------------------------------------------------------------------------------
def test_check_model_prints_a_line_per_check(package, capsys, monkeypatch):
    only = ["--only", "entry", "counts_before_losses"]
    assert main(["check-model", "my_model", *only]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "my_model: family my_model, MyModel; tiny() of my_model.model\n  passed  entry\n"
    )
    assert text.endswith("2 passed, 0 failed, 0 skipped\n")
    wrong = registry.Family("my_model", "My model", module="my_model.model", edits=True)
    monkeypatch.setitem(registry.FAMILIES, "my_model", wrong)
    monkeypatch.chdir(package.parent)  # where the package's folder has the name of the family
    assert main(["check-model", "my_model", *only]) == 3
    assert "  failed  entry" in capsys.readouterr().out


def test_check_model_takes_folders_files_and_names(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    only = ["--only", "entry"]
    for named in ("config/model/showo_tiny", "bagel_tiny", "harmon", "weights/showo_tiny"):
        assert main(["check-model", named, *only]) == 0
    for named, said in {
        "nothing": "model family 'nothing' is not known",
        "config/model/nothing.yaml": "no such model folder or model configuration",
        "bagel_7b": "weights.path = None is not a folder",
        "showo_tiny": "check 'entri' is not known; did you mean 'entry'?",
    }.items():
        capsys.readouterr()
        assert main(["check-model", named, "--only", "entri"]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("    with torch.random.fork", "    raise KeyError('words')\n    with torch.random.fork"),
         r"tiny\(\) of my_model.model raised KeyError: 'words'; look at tiny \(my_model/model.py:\d+\)"),
        (("    return model\n", "    return None\n"), r"tiny\(\) of my_model.model gives NoneType; it must be"),
        (("def tiny", "def small"), r"weights.path = 'work/my_model' is not a folder.*; or define tiny\(\) next to"),
    ],
)  # fmt: skip
def test_what_tiny_does_wrong_is_said_of_tiny(package, tmp_path, monkeypatch, edit, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    code = package / "model.py"
    assert edit[0] in code.read_text()
    code.write_text(code.read_text().replace(*edit))
    with pytest.raises(ValueError, match=said):
        model_of("my_model")


def test_a_module_that_does_not_exist_is_said_of_the_entry(package):
    (package / "model.py").rename(package / "models.py")
    with pytest.raises(
        ValueError, match=r"Family 'my_model' \(my_model\) has module='my_model.model'"
    ):
        registry.build_model("my_model", {})
    (package / "model.py").write_text("import nothing_there\n")
    with pytest.raises(ModuleNotFoundError, match="nothing_there"):
        registry.build_model("my_model", {})
