"""Every experiment loads, and every kind of mistake gets one line: key path, value, what is allowed."""

import codecs
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml
from omegaconf import OmegaConf

from reca.config import compose
from reca.config.recipe import Recipe
from reca.config.schema import Experiment, Sampler, ToyWorld
from reca.core.structure import json_schema

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "config"
TINY = "models.showo_tiny_bound"


@pytest.fixture(autouse=True)
def _in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def message(*overrides, experiment="laptop"):
    with pytest.raises(ValueError) as caught:
        compose.load(experiment, overrides)
    text = str(caught.value)
    assert "\n" not in text
    prefix = f"experiment {experiment!r}: "
    assert text.startswith(prefix)
    return text.removeprefix(prefix)


@cache
def loaded(name):
    return compose.load(name, config_dir=FOLDER)


# ---- what is right -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", compose.names(FOLDER))
def test_experiment_loads_and_fits_its_schema(name):
    experiment = loaded(name)
    assert experiment.name == name
    plain = json.loads(json.dumps(compose.resolved(experiment)))
    jsonschema.Draft202012Validator(json_schema(Experiment)).validate(plain)
    assert compose.section(Experiment, plain) == experiment


def test_default_experiment_is_the_laptop():
    root = yaml.safe_load((FOLDER / "config.yaml").read_text())
    assert root["defaults"][0] == {"experiment": "laptop"}
    laptop = loaded("laptop")
    assert set(laptop.arms) == {"base", "reca", "sft"} and len(laptop.seeds) >= 3
    assert not any(m.resources.gpus for m in laptop.models.values())
    assert all(d.kind == "world" for d in laptop.data.values())  # no download


def test_smoke_differs_from_the_experiment_of_its_model_in_sizes_only():
    laptop, smoke = loaded("laptop_showo"), loaded("laptop_smoke")
    assert smoke.models.keys() <= laptop.models.keys() and smoke.arms == laptop.arms
    for name, model in smoke.models.items():
        assert model.network == laptop.models[name].network
        assert model.align.tasks.keys() == laptop.models[name].align.tasks.keys()


def test_a_batch_of_one_cannot_be_shuffled():
    said = rf"{TINY}.align.tasks.reca.batch = 1: must be at least 2 with shuffle_condition \(arm shuffled\)$"
    with pytest.raises(ValueError, match=said):
        compose.load("laptop_showo_bound", [f"{TINY}.align.tasks.reca.batch=1"], FOLDER)


def test_paper_experiments_state_what_they_should_reach():
    stated, values = {}, {}
    for name in compose.names(FOLDER):
        experiment = loaded(name)
        if name.startswith("laptop"):
            continue
        assert experiment.expect, name
        for e in experiment.expect:
            values[name, e.model, e.arm, e.metric] = e.value
            # one source gives one number; each ablation has a control of its own
            own = name if e.arm == "sft" else None
            key = (e.source, own, e.model, e.arm, e.metric, experiment.models[e.model].weights.file)
            assert stated.setdefault(key, e.value) == e.value
    assert values["paper_showo_512", "showo_clip_512", "reca", "geneval.overall"] == 0.723
    assert values["paper_bagel", "bagel_7b", "reca", "dpg.overall"] == 85.29


def test_published_recipes():
    showo = loaded("paper_showo_512").models["showo_clip_512"].align
    assert (showo.lr, showo.warmup, showo.steps, showo.clip, showo.ema) == (
        5e-7,
        1000,
        5000,
        None,
        None,
    )
    effective = {name: task.batch * showo.accumulation for name, task in showo.tasks.items()}
    assert effective == {"reca": 10, "i2t": 10}
    smaller = loaded("paper_showo_256").models["showo_clip_256"].align
    assert smaller.horizon == 10000 and smaller.tasks["reca"].batch * smaller.accumulation == 20
    bagel = loaded("paper_bagel").models["bagel_7b"].align
    assert (bagel.lr, bagel.eps, list(bagel.tasks)) == (4e-5, 1e-15, ["reca"])


def test_overrides_reach_fields_that_no_file_mentions():
    experiment = compose.load("laptop", [f"{TINY}.align.ema=0.99", "mirror=somewhere", "seeds=[7]"])
    assert experiment.models["showo_tiny_bound"].align.ema == 0.99
    assert (experiment.mirror, experiment.seeds) == ("somewhere", [7])


def test_override_of_a_group():
    experiment = compose.load("laptop", ["benchmark@benchmarks.laptop=laptop_smoke"])
    assert (
        experiment.benchmarks["laptop"].prompts
        == loaded("laptop_smoke").benchmarks["laptop"].prompts
    )


def test_load_twice_is_equal_and_imports_no_torch():
    code = (
        "import sys; from reca.config import compose; a = compose.load('laptop'); b = compose.load('laptop');"
        "assert a == b; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_resolved_file_is_rewritten_only_when_it_changes(tmp_path):
    path = tmp_path / "build" / "laptop.yaml"
    laptop = loaded("laptop")
    assert compose.write_resolved(laptop, path)
    before = path.stat().st_mtime_ns
    assert not compose.write_resolved(laptop, path)
    assert path.stat().st_mtime_ns == before
    assert compose.section(Experiment, OmegaConf.to_container(OmegaConf.load(path))) == laptop
    assert compose.write_resolved(compose.load("laptop", ["seeds=[1]"]), path)


# ---- the schema file -----------------------------------------------------------------------------
def test_schema_file_is_in_step():
    assert (ROOT / compose.SCHEMA_PATH).read_text() == compose.schema_text(), (
        "run `reca schema --write`"
    )


def test_schema_describes_a_field_by_its_comment():
    """Beside the field, or right above it; a field without one has no description."""
    fields = json.loads(compose.schema_text())["$defs"]
    recipe = fields["Recipe"]["properties"]
    assert recipe["accumulation"]["description"] == "micro-batches of every task per optimiser step"
    assert recipe["schedule"]["description"].startswith("After the warm-up")
    assert "description" not in recipe["eps"]
    rotations = fields["BenchmarkConfig"]["properties"]["rotations"]
    assert rotations["description"].startswith("MMBench: every question")
    assert "description" not in fields["Experiment"]["properties"]["name"]


def test_schema_refuses_what_the_types_refuse():
    validator = jsonschema.Draft202012Validator(json.loads(compose.schema_text()))
    validator.check_schema(validator.schema)
    plain = compose.resolved(loaded("laptop"))
    for path, value in {
        ("seeds",): "all",
        ("arms",): ["base", "recca"],
        ("models", "showo_tiny_bound", "align", "lr"): "1.5",
        ("models", "showo_tiny_bound", "align", "stepz"): 1,
        ("models", "showo_tiny_bound", "align", "steps"): 0,
        ("models", "showo_tiny_bound", "align", "schedule"): "linear",
        ("cost",): None,
    }.items():
        wrong = json.loads(json.dumps(plain))
        at = wrong
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        assert not validator.is_valid(wrong), path


# ---- one line per mistake ------------------------------------------------------------------------
def test_unknown_experiment():
    with pytest.raises(
        ValueError, match=r"^experiment 'labtop' is not known; did you mean 'laptop'\? allowed: "
    ):
        loaded("labtop")


MISTAKES = {
    f"{TINY}.align.lr=.inf": f"{TINY}.align.lr = inf: must be a finite number",
    f"{TINY}.sampler.guidance=[.nan]": f"{TINY}.sampler.guidance[0] = nan: must be a finite number",
    f"{TINY}.sampler.options.ordr=up": f"{TINY}.sampler.options.ordr = 'up': unknown option; did you "
    "mean 'order'? allowed: confidence_schedule, confidence_temperature, order",
    f"{TINY}.align.prompts=paperlike": f"{TINY}.align.prompts = 'paperlike': must be one of "
    "paper_like, single, laptop, file",
    f"{TINY}.align.prompts=file": f"{TINY}.align.prompts_file = None: must be a file where prompts is "
    "file, and null elsewhere",
    f"{TINY}.align.prompts_file=list.txt": f"{TINY}.align.prompts_file = 'list.txt': must be a file "
    "where prompts is file, and null elsewhere",
    f"{TINY}.align.tasks.reca.weight=0": f"{TINY}.align.tasks = ['i2t', 't2i']: arm reca needs task reca, "
    "weight above 0",
    f"{TINY}.resources.nodes=2": f"{TINY}.resources.gpus = 0: must be at least 1 on several nodes",
    "cost.hours=-1": "cost.hours = -1: must be at least 0",
    f"{TINY}.align.betas=[0.9]": f"{TINY}.align.betas = [0.9]: must hold at least 2",
    f"{TINY}.align.ema=1": f"{TINY}.align.ema = 1: must be below 1",
    f"{TINY}.sampler.options={{1: up}}": f"{TINY}.sampler.options = 1: a name of an entry must be "
    "a text; put it in quotes",
    # wrong key
    f"{TINY}.align.step=5": f"{TINY}.align.step = 5: unknown key; did you mean 'steps'? allowed: ",
    "sedes=[1]": "sedes = [1]: unknown key; did you mean 'seeds'? allowed: ",
    f"{TINY}.resources.gpu=1": f"{TINY}.resources.gpu = 1: unknown key; did you mean 'gpus'? "
    "allowed: gpus, memory_mb, nodes, runtime_minutes, threads",
    "data.reconstruct.world.imagez=1": "data.reconstruct.world.imagez = 1: unknown key; "
    "did you mean 'images'? allowed: asks, binding, caption, describes, images, kind, seed, single_object_share",
    # wrong type
    f"{TINY}.align.steps=many": f"{TINY}.align.steps = 'many': must be a whole number",
    f"{TINY}.align.steps=1.5": f"{TINY}.align.steps = 1.5: must be a whole number",
    f"{TINY}.align.steps=true": f"{TINY}.align.steps = True: must be a whole number",
    f"{TINY}.align.lr=fast": f"{TINY}.align.lr = 'fast': must be a number",
    f"{TINY}.align.clip=none": f"{TINY}.align.clip = 'none': must be a number or null",
    "allow_unpinned=1": "allow_unpinned = 1: must be true or false",
    "seeds=3": "seeds = 3: must be a list, each a whole number",
    "seeds=[a]": "seeds[0] = 'a': must be a whole number",
    "models=showo": "models = 'showo': must be a mapping from names, each a section with family, "
    "network, weights, align, data, benchmarks, sampler, resources, seeds, arms, cache_dtype, cache_rows",
    "title=7": "title = 7: must be a text",
    "cost=free": "cost = 'free': must be a section with hardware, hours, basis",
    # wrong choice
    "arms=[base,recca]": "arms[1] = 'recca': must be one of base, reca, reca_only, sft, shuffled, "
    "random_encoder, template_only",
    f"{TINY}.family=shown": f"{TINY}.family = 'shown': must be one of showo, harmon, openuni, bagel, janus, "
    "or of an installed package (reca.models)",
    "benchmarks.laptop.kind=coco": "benchmarks.laptop.kind = 'coco': must be one of laptop, laptop_edit, geneval, "
    "dpg, wise, t2i_compbench, imgedit, gedit, mme, pope, gqa, mmmu, seed, mmbench, mmvp, mmvet, reconstruction",
    f"{TINY}.align.schedule=linear": f"{TINY}.align.schedule = 'linear': must be one of cosine, constant, published",
    f"{TINY}.arms=[reca_only]": f"{TINY}.arms = 'reca_only': is no arm of this experiment; "
    "did you mean 'reca'? allowed: base, reca, sft",
    "benchmarks.laptop.curve_prompts=99": "benchmarks.laptop.curve_prompts = 99: must be at most prompts, "
    "which is 40",
    "benchmarks.laptop.test_seeds.images=1": "benchmarks.laptop.test_seeds.images: unknown name; "
    "allowed: edits, prompts, questions, scenes",
    "why.conditions=showo": "why.conditions = 'showo': unknown model; "
    "allowed: bagel_tiny_bound, showo_tiny_bound",
    "why.steps=[nothing]": "why.steps = 'nothing': unknown model; allowed: bagel_tiny_bound, showo_tiny_bound",
    # missing
    "~cost": "cost is missing: must be a section with hardware, hours, basis",
    f"~{TINY}.weights.kind": f"{TINY}.weights.kind is missing: must be one of shipped, source, pretrain",
    # ranges and repeats
    "seeds=[0,1,0]": "seeds = [0, 1, 0]: must not hold a value twice",
    "seeds=[]": "seeds = []: must not be empty",
    "seeds=[-1]": "seeds[0] = -1: must be at least 0",
    "arms=[base,base]": "arms = ['base', 'base']: must not hold a value twice",
    f"{TINY}.sampler.steps=0": f"{TINY}.sampler.steps = 0: must be at least 1",
    f"{TINY}.sampler.temperature=0": f"{TINY}.sampler.temperature = 0: must be above 0",
    f"{TINY}.sampler.guidance=[-1]": f"{TINY}.sampler.guidance[0] = -1: must be at least 0",
    f"{TINY}.align.tasks.reca.batch=0": f"{TINY}.align.tasks.reca.batch = 0: must be at least 1",
    f"{TINY}.align.tasks.recon.batch=4": f"{TINY}.align.tasks.recon: unknown name; "
    "did you mean 'reca'? allowed: edit, i2t, reca, t2i, text",
    "name=My lab": "name = 'My lab': a name is made of a-z, 0-9 and _",
    # combinations
    f"{TINY}.network.resolution=18": f"{TINY}.network.resolution = 18: must be a multiple of 4, "
    "the tokenizer's pixels per image code",
    f"{TINY}.network.clip_vision=null": f"{TINY}.network.clip_vision = None: understanding clip needs "
    "the sizes of a tower",
    f"{TINY}.network.understanding=vq": f"{TINY}.network.clip_vision = '...': must be null where understanding is vq",
    f"{TINY}.weights.path=null": f"{TINY}.weights.path = None: must be given where kind is shipped",
    f"{TINY}.weights.source=show-o": f"{TINY}.weights.source = 'show-o': must be null where kind is shipped",
    "benchmarks.laptop.development_prompts=0": "models.bagel_tiny_bound.sampler.guidance = [1.0, 3.0, 5.0, 8.0]: "
    "must hold one value unless a benchmark has development_prompts to choose on",
    "benchmarks.laptop.prompts=0": "benchmarks.laptop.prompts = 0: must be at least 1",
    "benchmarks.laptop.kind=geneval": "benchmarks.laptop.source = None: must be given where kind is geneval",
    "~data.answer": f"data.answer = None: task i2t of {TINY} needs it; add "
    "`- /data@data.answer: NAME`, a file of config/data/, to the experiment's defaults, or set the task's weight to 0",
    "data.reconstruct.path=here": "data.reconstruct.path = 'here': must be null where kind is world",
    "data.reconstruct.kind=folder": "data.reconstruct.world = '...': must be null where kind is folder",
    "data.extra.kind=folder": "data.extra = 'folder': unknown role 'extra'; "
    "did you mean 'text'? allowed: answer, edit, reconstruct, text",
    "data.reconstruct.world.caption.two=0.99": "data.reconstruct.world.caption = 1.03: "
    "relation + count + two must be at most 1",
    "~data.reconstruct.world.caption.noise": "data.reconstruct.world.caption.noise is missing: "
    "must be a number from 0 to 1, as must noise, relation, count, two, colour, single_colour; "
    "config/data/laptop_world.yaml has values",
    f"{TINY}.weights.companions.tokenizer=phi_1.5": f"{TINY}.weights.companions.tokenizer = 'phi_1.5': "
    "not in config/sources.yaml; did you mean 'phi-1.5'? allowed: ",
}  # fmt: skip


@pytest.fixture(scope="module")
def laptop_plain():
    return compose.compose_plain("laptop", [], FOLDER)


@pytest.mark.parametrize("override", MISTAKES)
def test_mistake_gets_one_line(override, laptop_plain):
    key, _, value = override.removeprefix("~").partition("=")
    wrong = OmegaConf.create(laptop_plain)
    if override.startswith("~"):
        parent, _, last = key.rpartition(".")
        del (OmegaConf.select(wrong, parent) if parent else wrong)[last]
    else:
        OmegaConf.update(wrong, key, yaml.safe_load(value))
    with pytest.raises(ValueError) as caught:
        compose.typed(OmegaConf.to_container(wrong), FOLDER)
    found, expected = str(caught.value), MISTAKES[override]
    assert found.startswith(expected) if expected.endswith("allowed: ") else found == expected


def test_a_value_that_hydra_requires_is_named():
    assert message("question=???") == "question is missing: give it a value in place of ???"


@pytest.mark.parametrize(
    "override", ["sedes=[1]", f"{TINY}.align.steps=many", "~data.answer", "~cost"]
)
def test_mistake_in_an_override_gets_the_same_line(override):
    found, expected = message(override), MISTAKES[override]
    assert found.startswith(expected) if expected.endswith("allowed: ") else found == expected


def test_an_arm_that_would_be_reca_is_refused():
    said = (
        "models.showo_tiny.align.tasks.t2i = None: arm reca_only leaves out the captions that a recipe "
        "keeps; add the task, or leave the arm out, which would be reca (arm reca_only)"
    )
    with pytest.raises(ValueError, match=re.escape(said)):
        compose.load("laptop_showo", ["arms=[base,reca,reca_only]"], FOLDER)


EXPECTATIONS = {
    "{model: other, metric: laptop.dense, value: 1, tolerance: 0, source: us}": "expect[0].model = "
    "'other': unknown model; allowed: bagel_tiny_bound, showo_tiny_bound",
    "{model: showo_tiny_bound, metric: geneval.dense, value: 1, tolerance: 0, source: us}": "expect[0].metric = "
    "'geneval.dense': must begin with a benchmark; allowed: laptop",
    "{model: showo_tiny_bound, metric: laptop.dense, value: 1, tolerance: -1, source: us}": "expect[0].tolerance = "
    "-1: must be at least 0",
}  # fmt: skip


@pytest.mark.parametrize("expected", EXPECTATIONS)
def test_expectations_must_fit_the_experiment(expected):
    assert message(f"expect=[{expected}]") == EXPECTATIONS[expected]


def test_expectation_of_an_arm_that_does_not_run():
    expected = "{model: showo_tiny_bound, metric: laptop.dense, value: 1, tolerance: 0, source: us, arm: sft}"
    found = message(f"expect=[{expected}]", "arms=[base,reca]")
    assert found == "expect[0].arm = 'sft': is no arm of this experiment; allowed: base, reca"


@pytest.mark.parametrize("override", ["seeds", "benchmark@benchmarks.laptop=none", "a=[1"])
def test_override_that_hydra_cannot_read(override):
    message(override)


# ---- what a file of the user's may hold --------------------------------------------------------------
OWN = "# @package _global_\ndefaults:\n  - laptop_smoke\n  - _self_\nname: own\n"


@pytest.fixture(scope="module")
def own_config(tmp_path_factory):
    """The configuration, to which a test adds `experiment/own.yaml`."""
    return shutil.copytree(FOLDER, tmp_path_factory.mktemp("own") / "config")


def load_own(folder, text, overrides=()):
    (folder / "experiment/own.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return compose.load("own", overrides, folder)


RESOLVERS = [
    "oc.env:CANARY",
    "oc.env:CANARY,x",
    "oc.decode:'[1]'",
    "oc.create:{a:1}",
    "hydra:job.name",
    "now:%Y",
]


@pytest.mark.parametrize("call", RESOLVERS)
def test_no_function_is_resolved_in_an_experiment(own_config, monkeypatch, call):
    """An environment variable would end in outputs, records and the report; names of variables stay names."""
    monkeypatch.setenv("CANARY", "s3cret-value")
    places = {
        "title": (f'{OWN}title: "a ${{{call}}}"\n', ()),
        "cost.basis": (OWN, [f'cost.basis="${{{call}}}"']),
        "data.reconstruct.options": (
            f'{OWN}data: {{reconstruct: {{options: {{a: ["${{{call}}}"]}}}}}}\n',
            (),
        ),
    }
    if call == "oc.env:CANARY":
        places["defaults"] = (OWN.replace("- laptop_smoke", f"- ${{{call}}}"), ())
        places["question"] = (f"{OWN}title: oc.env\nquestion: ${{${{title}}:CANARY}}\n", ())
    for key, (text, overrides) in places.items():
        with pytest.raises(
            ValueError, match=r"is not resolved, only \$\{key\} of another value"
        ) as caught:
            load_own(own_config, text, overrides)
        assert f"{key}" in str(caught.value) and "s3cret" not in str(caught.value)
    assert load_own(own_config, f"{OWN}title: ${{question}}\n").title.startswith("Does every stage")


def test_a_colon_in_the_key_of_an_override_gets_a_hint():
    assert "write models.showo_tiny.align.steps=..." in message("models:showo_tiny.align:steps=1")


def test_a_byte_order_mark_is_no_text(own_config):
    plain = load_own(own_config, OWN)
    assert load_own(own_config, codecs.BOM_UTF8 + OWN.encode()) == plain


def test_an_experiments_name_is_its_files(own_config):
    with pytest.raises(
        ValueError, match=r"name = 'other', but the file is .*/experiment/own\.yaml"
    ):
        load_own(own_config, OWN.replace("name: own", "name: other"))


def test_a_resolved_file_replaces_no_source(own_config):
    path = own_config / "experiment/own.yaml"
    with pytest.raises(ValueError, match="exists and was not written by this command"):
        compose.write_resolved(load_own(own_config, OWN), path)
    assert path.read_text() == OWN


def test_a_file_that_is_no_yaml_is_named_with_its_line(tmp_path):
    import shutil

    shutil.copytree(FOLDER, tmp_path / "config")
    file = tmp_path / "config/data/laptop_world.yaml"
    file.write_text(file.read_text() + "world: {images: 3\n")
    with pytest.raises(ValueError, match=r"laptop_world\.yaml\W+line \d+") as caught:
        compose.load("laptop", config_dir=tmp_path / "config")
    assert "\n" not in str(caught.value)


# ---- sections ------------------------------------------------------------------------------------
def test_section_is_strict_and_fills_defaults():
    assert compose.section(Sampler, {"steps": 3}) == Sampler(steps=3)
    assert compose.section(Recipe, asdict(Recipe())) == Recipe()
    with pytest.raises(ValueError, match=r"^stepz = 3: unknown key; did you mean 'steps'\?"):
        compose.section(Sampler, {"stepz": 3})
    with pytest.raises(
        ValueError, match=r"^configuration = \[\]: must be a section with kind, images"
    ):
        compose.section(ToyWorld, [])


@pytest.mark.parametrize(("seeds", "said"), [("[3,3]", "twice"), ("[-1]", "at least 0")])
def test_a_models_own_seeds_are_checked(seeds, said):
    with pytest.raises(ValueError, match=rf"models\.showo_clip_512\.seeds.*{said}"):
        compose.load("paper", [f"models.showo_clip_512.seeds={seeds}"])


def test_janus_pro_is_its_two_sizes_together():
    both, *sizes = (compose.load(name) for name in ("janus_pro", "janus_pro_1b", "janus_pro_7b"))
    assert both.models == sizes[0].models | sizes[1].models
    assert both.expect == sizes[0].expect + sizes[1].expect
    assert both.cost.hours == sizes[0].cost.hours + sizes[1].cost.hours
    for size in sizes:
        shared = ("data", "benchmarks", "seeds", "arms")
        assert all(getattr(both, name) == getattr(size, name) for name in shared)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_openunis_own_stages_differ_in_the_model_alone(stage):
    small, large = (compose.load(f"paper_openuni_{size}_{stage}") for size in "bl")
    for name in ("data", "benchmarks", "seeds", "arms"):
        assert getattr(small, name) == getattr(large, name)
    recipes = [next(iter(one.models.values())).align for one in (small, large)]
    # SANA-1.6B is trained with its activations computed again
    assert replace(recipes[0], activation_checkpointing=stage == "stage2") == recipes[1]


@pytest.mark.parametrize("text", [f"title: {'[' * 9999}", "a: &a [1]\nb: [*a, *b]"])
def test_odd_yaml_that_an_experiment_inherits_is_named(tmp_path, text):
    """Hydra loads parents by itself; an alias bomb in one took minutes."""
    folder = shutil.copytree(FOLDER, tmp_path / "config")
    (folder / "experiment/parent.yaml").write_text(f"# @package _global_\n{text}\n")
    (folder / "experiment/child.yaml").write_text(
        "# @package _global_\ndefaults: [laptop, {/experiment: parent}, _self_]\nname: child\n"
    )
    with pytest.raises(ValueError, match=r"parent\.yaml"):
        compose.load("child", (), folder)
    assert compose.load("laptop_smoke", (), folder).name == "laptop_smoke"  # others go on


def test_an_override_that_is_nested_too_deeply_is_named():
    assert message("title=" + "[" * 999 + "]" * 999).startswith("override 'title=[[")
