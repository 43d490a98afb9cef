"""Rules between the fields of an experiment: names that become parts of paths, and what a run needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from reca.config import compose
from reca.config.validate import (
    SCENE_SIDE,
    TOYWORLD,
    aligned_roles,
    needed_data,
    needed_sources,
)
from reca.evaluation import registry
from reca.toyworld import scenes

FOLDER = Path(__file__).resolve().parents[2] / "config"
HOSTILE = ["my photos", "photos (1)", "O'Brien", "r&d", "$HOME", "a;echo X", "p$(touch X)", "p{wildcards}",
           "用户", "../up", "a=b", "-x", "", "."]  # fmt: skip
ONE = {
    "models": "showo_tiny",
    "data": "reconstruct",
    "benchmarks": "laptop",
    "models.showo_tiny.weights.companions": "shipped",
    "benchmarks.laptop.companions": "detector",
    "pretrain.parts": "tokenizer",
    "pretrain.phases": "a_language",
}


@pytest.fixture(scope="module")
def plain():
    return compose.compose_plain("laptop_pretrain", [], FOLDER)


def renamed(tree, path, old, new):
    """A copy of a configuration with one key of the mapping at `path` renamed, or added where there is none."""
    head, _, rest = path.partition(".")
    inner = tree.get(head) or {}
    if rest:
        return {**tree, head: renamed(inner, rest, old, new)}
    found = {new if key == old else key: value for key, value in inner.items()}
    return {**tree, head: found if new in found else {**found, new: "magvitv2"}}


@pytest.mark.parametrize("path", ONE)
def test_a_name_that_becomes_part_of_a_path_is_refused_by_name(plain, path):
    plain = {**plain, "benchmarks": compose.compose_plain("laptop", [], FOLDER)["benchmarks"]}
    for name in HOSTILE:
        with pytest.raises(ValueError) as caught:
            compose.typed(renamed(plain, path, ONE[path], name), FOLDER)
        assert str(caught.value) == f"{path} = {name!r}: a name is made of a-z, 0-9 and _"


@pytest.mark.parametrize("name", ["coco/train", "a=b", "", ".."])
def test_the_first_folder_of_images_is_one_folder(plain, name):
    llava = {"kind": "llava", "path": "a;b", "companions": {name: "magvitv2"}}
    with pytest.raises(ValueError, match="first folder of the images' paths"):
        compose.typed({**plain, "data": {**plain["data"], "answer": llava}}, FOLDER)


def test_the_first_folder_of_images_may_have_any_name(plain):
    names = ["my photos", "O'Brien", "p$(touch X)", "p{wildcards}", "用户", "-x"]
    llava = {"kind": "llava", "path": "a;b", "companions": dict.fromkeys(names, "magvitv2")}
    made = compose.typed({**plain, "data": {**plain["data"], "answer": llava}}, FOLDER)
    assert list(made.data["answer"].companions) == names


@pytest.mark.parametrize("name", ["O'Brien", "p{wildcards}", "../up"])
def test_a_source_with_such_a_name_is_refused_where_it_is_used(plain, tmp_path, name):
    (tmp_path / "sources.yaml").write_text(f'sources: {{"{name}": {{}}}}')
    answer = {"kind": "llava", "source": name}
    with pytest.raises(ValueError) as caught:
        compose.typed({**plain, "data": {**plain["data"], "answer": answer}}, tmp_path)
    assert str(caught.value).startswith(f"data.answer.source = {name!r}: a name holds lower-case")


# ---- what a run reads ------------------------------------------------------------------------------
SHOWO = "models.showo_clip_512"
LLAVA = {
    "llava-665k",
    *(f"llava-images-{name}" for name in ("coco", "gqa", "ocr-vqa", "textvqa", "vg")),
}


def sources(*overrides):
    return {name for _, name in needed_sources(compose.load("paper_showo_512", overrides, FOLDER))}


def test_only_what_a_task_with_a_weight_reads_is_needed():
    every = sources()
    assert every >= LLAVA | {"midjourney-v6-llava"}
    assert sources(f"{SHOWO}.align.tasks.i2t.weight=0") == every - LLAVA
    assert sources("arms=[base]", "expect=[]") == every - LLAVA - {"midjourney-v6-llava"}


def test_a_benchmark_that_no_model_takes_needs_nothing():
    assert sources(f"{SHOWO}.benchmarks=[wise]") < sources() - {"geneval", "blip-vqa"}


def test_roles_follow_the_arms_that_run_and_the_models_own_entries():
    laptop = compose.load("laptop", config_dir=FOLDER)
    assert aligned_roles(laptop, "bagel_tiny_bound") == {"reconstruct": "reconstruct"}
    assert needed_data(laptop, ["bagel_tiny_bound"]) == ["reconstruct"]
    assert needed_data(laptop) == ["reconstruct", "answer"]
    assert needed_data(compose.load("laptop", ["arms=[base]", "expect=[]"], FOLDER)) == []


def test_a_phase_may_read_questions_of_its_own():
    bound = compose.load("laptop_pretrain_bagel_bound", [], FOLDER)
    assert needed_data(bound) == ["reconstruct", "text", "answer", "colour", "place"]
    name = "laptop_pretrain_bagel_bound"
    with pytest.raises(
        ValueError, match=r"pretrain.answers = 'd_color': is no phase; did you mean 'd_colour'"
    ):
        compose.load(name, ["pretrain.answers={d_color: colour}"], FOLDER)
    told = ["+data.told=${data.text}", "pretrain.texts={a_language: told}"]
    assert needed_data(compose.load(name, told, FOLDER))[1] == "told"
    with pytest.raises(ValueError, match=r"data.colour = None: pretraining reads it"):
        compose.load(name, ["~data.colour"], FOLDER)


def test_pretraining_without_the_data_of_a_phase_is_refused(plain):
    data = {role: entry for role, entry in plain["data"].items() if role != "text"}
    with pytest.raises(ValueError, match=r"^data.text = None: pretraining reads it$"):
        compose.typed({**plain, "data": data}, FOLDER)


def test_a_resolution_that_the_toy_worlds_examiner_cannot_read_is_refused():
    assert SCENE_SIDE == scenes.SIZE
    assert {name for name, kind in registry.KINDS.items() if kind.toyworld} == set(TOYWORLD)
    chosen = ["+model@models.mine=openuni_tiny", "models.mine.network.resolution=24"]
    said = r"models.mine.network.resolution = 24: must be a multiple of 16.*benchmark laptop \(kind"
    with pytest.raises(ValueError, match=said):
        compose.load("laptop", chosen, FOLDER)
    compose.load("laptop", [chosen[0], "models.mine.network.resolution=32"], FOLDER)
    compose.load("paper_openuni_l", ["models.openuni_l_512.network.resolution=500"], FOLDER)
