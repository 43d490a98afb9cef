"""The verbs, one after another, as the workflow calls them: a tiny world through to drawn pictures."""

import json
import shutil
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from reca.cli import main
from reca.config.schema import DataSource, ToyWorld
from reca.core.artifacts import Stage, read_json, read_manifest
from reca.data.prompts import bank
from reca.models.registry import build_model
from reca.toyworld.pretrain.words import build_tokenizer

CAPTION = dict.fromkeys(("noise", "relation", "count", "two", "colour", "single_colour"), 0.3)
WORLD = ToyWorld(images=12, single_object_share=0.5, caption=CAPTION)
DATA = asdict(DataSource(kind="world", world=WORLD))
RECIPE = {
    "tasks": {"reca": {"batch": 2}, "i2t": {"batch": 2}},
    "steps": 2,
    "prompts": "laptop",
    "precision": "fp32",
}


def network():
    words = build_tokenizer(bank("laptop"))
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    llm = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    llm |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
    levels = {"enc_ch_mult": [1, 1, 2], "dec_ch_mult": [1, 1, 2]}
    levels |= {"enc_num_res_blocks": [1, 1, 1], "dec_num_res_blocks": [1, 1, 1]}
    return {
        "resolution": 16,
        "understanding": "clip",
        "llm_vocab_size": len(words),
        "endoftext": words.eos_token_id,
        "max_text": 96,
        "head_text": 32,
        "system_prompt": "",
        "llm": llm,
        "vq": {"ch": 8, **levels, "z_channels": 6},
        "clip_vision": tower,
        "projector": [24, 32, 32],
    }


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Run the chain once; tests look at what it left."""
    root = tmp_path_factory.mktemp("verbs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        torch.manual_seed(0)
        shipped = build_model("showo", network())
        build_tokenizer(bank("laptop")).save_pretrained("words")
        shipped.read_tokenizer(root / "words")
        shipped.save(root / "shipped")
        weights = {"kind": "shipped", "path": "shipped"}
        run("render", section=asdict(WORLD), out="data/world")
        described = {"family": "showo", "network": network(), "weights": weights}
        run("base", section=described, out="base")
        for use in ("draw", "read"):
            section = {"family": "showo", "data": {"reconstruct": DATA}}
            run("cache", section=section, model="base", data="data/world", use=use,
                work=f"work/{use}", out=f"cache/{use}")  # fmt: skip
        for arm in ("reca", "sft"):
            align(arm, f"{arm}/seed-0")
    return root


def run(verb, *more, section=None, **options):
    words = [verb, *more]
    if section is not None:
        words += ["--section", json.dumps(section)]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    assert main(words) == 0, words


def align(arm, out):
    section = {"family": "showo", "align": RECIPE, "data": {"reconstruct": DATA, "answer": DATA}}
    roles = ["--data", "reconstruct=data/world", "--data", "answer=data/world"]
    caches = ["--cache", "draw=cache/draw", "--cache", "read=cache/read"]
    run("align", *roles, *caches, section=section, model="base", arm=arm, seed=0,
        work=f"work/{out}", out=out)  # fmt: skip


@pytest.fixture
def inside(chain, monkeypatch):
    monkeypatch.chdir(chain)
    return chain


def test_every_stage_leaves_a_record_and_the_trail_is_sound(inside, capsys):
    assert main(["audit", "data", "base", "cache", "reca", "sft"]) == 0
    assert "6 stages" in capsys.readouterr().out
    inputs = read_manifest("reca/seed-0")["inputs"]
    assert set(inputs) == {
        "model", "data.reconstruct", "data.answer", "cache.draw", "cache.read"
    }  # fmt: skip
    assert read_json("reca/seed-0/run.json")["steps"] == 2


def test_same_command_gives_the_same_model(inside):
    align("reca", "again/seed-0")
    first, second = (read_manifest(f"{name}/seed-0")["outputs"] for name in ("reca", "again"))
    assert first == second
    assert first["model.safetensors"] != read_manifest("base")["outputs"]["model.safetensors"]


def test_arms_differ_in_weights_and_in_their_record(inside):
    reca, sft = read_manifest("reca/seed-0"), read_manifest("sft/seed-0")
    assert reca["outputs"]["model.safetensors"] != sft["outputs"]["model.safetensors"]
    assert (reca["section"]["arm"], sft["section"]["arm"]) == ("reca", "sft")


def test_base_refuses_a_network_that_the_weights_do_not_fit(inside, capsys):
    wider = {**network(), "projector": [24, 48, 32]}
    weights = {"kind": "shipped", "path": "shipped"}
    section = json.dumps({"family": "showo", "network": wider, "weights": weights})
    assert main(["base", "--section", section, "--out", "other"]) == 2
    assert "network.projector is [24, 32, 32], but [24, 48, 32]" in capsys.readouterr().err
    assert not (inside / "other").exists()


def test_pictures_and_answers_from_the_command_line(inside, capsys):
    model = ["--model", "reca/seed-0"]
    few = ["--steps", "2", "--guidance", "1"]
    assert main(["draw", "a red circle", "--out", "one.png", *model, *few]) == 0
    assert main(["draw", "a red circle", "--out", "two.png", *model, *few]) == 0
    assert main(["draw", "a red circle", "--out", "three.png", "--seed", "1", *model, *few]) == 0
    first, second, third = ((inside / f"{n}.png").read_bytes() for n in ("one", "two", "three"))
    assert first == second != third
    assert main(["reconstruct", "one.png", "--out", "again.png", *model, *few]) == 0
    assert (inside / "again.png").is_file()
    capsys.readouterr()
    assert main(["ask", "one.png", "what color is the circle ?", *model]) == 0
    assert capsys.readouterr().out.count("\n") == 1


WRONG_WORDS = {
    "guidance nan": (["draw", "a red circle", "--guidance", "nan"], "sampling.guidance is nan; it must be 0"),
    "guidance inf": (["draw", "a red circle", "--guidance", "inf"], "sampling.guidance is inf"),
    "guidance below 0": (["draw", "a red circle", "--guidance", "-1"], "sampling.guidance is -1.0"),
    "no steps": (["draw", "a red circle", "--steps", "0"], "sampling.steps is 0; it must be at least 1"),
    "no ending": (["draw", "a red circle", "--out", "circle"], "--out circle: give a file name that ends in .png"),
    "other ending": (["draw", "a red circle", "--out", "c.bmp"], "--out c.bmp: give a file name that ends in"),
    "a folder": (["draw", "a red circle", "--out", "folder.png"], "--out folder.png: is a folder"),
    "below a file": (["draw", "a red circle", "--out", "p.png/x.png"], "p.png/x.png: cannot write"),
    "read-only": (["draw", "a red circle", "--out", "/proc/x.png"], "/proc/x.png: cannot write"),
    "unknown word": (["draw", "a flurble"], "not in this model's vocabulary: 'flurble'"),
    "not UTF-8": (["draw", "a red\udcff circle"], "is not UTF-8 text"),
    "no prompt": (["draw", "  "], "the prompt is empty; say what to draw"),
    "no template": (["reconstruct", "p.png", "--prompt", ""], "the prompt is empty"),
    "no question": (["ask", "p.png", ""], "the question is empty; say what to ask"),
    "no picture": (["ask", "none.png", "what ?"], "none.png: cannot read (No such file"),
    "text": (["reconstruct", "words.png"], "words.png: unreadable image: not a JPEG, PNG, WebP, GIF, BMP or TIFF"),
    "no model": (["draw", "a circle", "--model", "folder.png"], "folder.png: no reca_model.json here"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_bad_input_is_one_line_that_names_it(inside, capfd, case):
    """File or value and remedy on one line of stderr, exit 2; no picture is left behind."""
    words, message = WRONG_WORDS[case]
    (inside / "folder.png").mkdir(exist_ok=True)
    (inside / "words.png").write_text("hello")
    Image.new("RGB", (16, 16)).save(inside / "p.png")
    model = [] if "--model" in words else ["--model", "base"]
    assert main([*words, *model]) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (inside / "drawn.png").exists() and not (inside / "reconstructed.png").exists()


DAMAGE = {
    "cache": ("data/world/train.parquet", ["cache", "--model", "base", "--data", "data/world",
              "--use", "draw", "--out", "x"]),
    "cache: encoder": ("base/clip.safetensors", ["cache", "--model", "base", "--data", "data/world",
                       "--use", "draw", "--out", "x"]),
    "align: cache": ("cache/draw/features-00000.safetensors", ["align"]),
    "align: data": ("data/world/train.parquet", ["align"]),
    "align: base": ("base/model.safetensors", ["align"]),
    "sample": ("reca/seed-0/model.safetensors", ["sample", "--model", "reca/seed-0", "--seed", "0",
                 "--out", "x"]),
    "sample: record": ("reca/seed-0/manifest.json", ["sample", "--model", "reca/seed-0",
                       "--seed", "0", "--out", "x"]),
    "sample: guidance": ("guidance/guidance.json", ["sample", "--model", "reca/seed-0", "--seed", "0",
                         "--guidance", "guidance/guidance.json", "--out", "x"]),
    "observe": ("reca-0/test/samples/images.tar", ["observe", "--samples", "reca-0/test/samples",
                "--out", "x"]),
    "score: evidence": ("reca-0/test/evidence/evidence.jsonl", ["score", "--samples",
                        "reca-0/test/samples", "--evidence", "reca-0/test/evidence", "--out", "x"]),
    "score": ("reca-0/test/samples/images.tar", ["score", "--samples", "reca-0/test/samples",
              "--out", "x"]),
    "choose": ("base-0/development/scores/scores.json", ["choose", "--scores",
               "base-0/development/scores", "--out", "x/guidance.json"]),
    "draw": ("reca/seed-0/magvit.safetensors", ["draw", "a red circle", "--model", "reca/seed-0"]),
    "ask": ("base/tokenizer.json", ["ask", "p.png", "what ?", "--model", "base"]),
}  # fmt: skip


def test_missing_pieces_are_named(inside, capsys):
    section = json.dumps({"family": "showo", "align": RECIPE, "data": {"reconstruct": DATA}})
    words = ["align", "--section", section, "--model", "base", "--arm", "reca", "--seed", "0",
             "--out", "none"]  # fmt: skip
    assert main(words) == 2
    assert "--cache" in capsys.readouterr().err
    assert main(["ask", "nowhere.png", "what ?", "--model", "base"]) == 2
    assert "nowhere.png: cannot read" in capsys.readouterr().err
    assert main(["base", "--section", "{}", "--out", "x"]) == 2
    assert "--section: family is missing" in capsys.readouterr().err


def test_sections_and_experiments_that_are_wrong_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.yaml").write_text("models: [1")
    for words, message in (
        (["render", "--section", '{"images": 4}'], "--section.caption.noise is missing: must be a number"),
        (["render", "--section", '{"images": 0, "kind": "text"}'], "--section.images = 0: must be"),
        (["report", "--experiment", "torn.yaml", "--results", "r"], "torn.yaml, line 2: not valid YAML"),
        (["report", "--experiment", "none.yaml", "--results", "r"], "none.yaml: cannot read"),
    ):  # fmt: skip
        assert main([*words, "--out", "x"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "x").exists()


def test_without_any_model_the_remedy_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["draw", "a circle"]) == 2
    assert "run `make reproduce`" in capsys.readouterr().err


@pytest.fixture(scope="module")
def evaluated(chain):
    """Development scores of two arms, the guidance chosen on them, and test scores of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(chain)
        benchmark = {"kind": "laptop", "images_per_prompt": 1, "seed": 0}
        sampler = {"steps": 2, "temperature": 1.0, "options": {}}
        for arm, model in (("base", "base"), ("reca", "reca/seed-0")):
            section = {"family": "showo", "run": f"{arm}-0", "sampler": {**sampler, "guidance": [0.0, 2.0]},
                       "benchmark": {**benchmark, "development_prompts": 1}}  # fmt: skip
            evaluate(section, model, "development", f"{arm}-0/development")
        scores = [f"{arm}-0/development/scores" for arm in ("base", "reca")]
        assert main(["choose", "--scores", *scores, "--out", "guidance/guidance.json"]) == 0
        test = {**benchmark, "prompts": 1, "questions": 4, "reconstructions": 2}
        section = {"family": "showo", "run": "reca-0", "sampler": sampler, "benchmark": test}
        evaluate(section, "reca/seed-0", "test", "reca-0/test", "--guidance=guidance/guidance.json")


def test_evaluation_from_samples_to_scores_to_the_chosen_guidance(inside, evaluated):
    chosen = read_json("guidance/guidance.json")["chosen"]
    names = {"dense", "geneval", "geneval_strict"}
    assert {arm: set(levels) for arm, levels in chosen.items()} == {"base": names, "reca": names}
    found = read_json("reca-0/test/scores/scores.json")
    assert found["coverage"]["scored"] == found["coverage"]["expected"] == 8 + 4 + 2
    assert set(found["by_guidance"]) <= {"0.0", "2.0"} and found["label"] == "laptop(examiner)"
    names = {"dense", "geneval", "understanding", "reconstruction", "reconstruction_exact"}
    assert names <= set(found["summary"])
    assert main(["audit", "data", "base", "cache", "reca", "base-0", "reca-0", "guidance"]) == 0
    assert read_manifest("reca-0/test/samples")["inputs"].keys() == {"model", "guidance"}


def evaluate(section, model, split, out, *more):
    """The former names of the commands still work."""
    old = split == "development"
    run("generate" if old else "sample", *more, section=section, model=model, seed=0, split=split,
        work=f"work/{out}", out=f"{out}/samples")  # fmt: skip
    run("examine" if old else "observe", section=section["benchmark"], samples=f"{out}/samples",
        work=f"work/{out}", out=f"{out}/evidence")  # fmt: skip
    run("score", section=section["benchmark"], samples=f"{out}/samples",
        evidence=f"{out}/evidence", out=f"{out}/scores")  # fmt: skip


# ---- all stages of some runs in one process ----
SAMPLER = {"steps": 2, "temperature": 1.0, "options": {}}
DEVELOPMENT = {"kind": "laptop", "seed": 0, "development_prompts": 1}


def small_run(name, out, *, model="reca/seed-0", kind="laptop", **scoring):
    """`reca evaluate` of one run; gives the times at which its stages were written."""
    sampled = {"family": "showo", "run": name, "sampler": {**SAMPLER, "guidance": [0.0, 2.0]}}
    stages = {"sample": {**sampled, "benchmark": DEVELOPMENT}, "observe": {"kind": "laptop"},
              "score": {**DEVELOPMENT, "kind": kind, **scoring}}  # fmt: skip
    section = json.dumps({name: {"laptop": stages}})
    words = [
        "evaluate",
        "--section",
        section,
        "--model",
        f"{name}={model}",
        "--split",
        "development",
    ]
    return main([*words, "--work", "work/small", "--out", out])


def times(root, *names):
    return {n: (root / n / "manifest.json").stat().st_mtime_ns for n in names}


def test_one_process_makes_what_three_commands_make(inside, evaluated):
    assert small_run("reca-0", "one") == 0
    for stage in ("samples", "evidence", "scores"):
        found = read_manifest(f"one/reca-0/laptop/development/{stage}")["outputs"]
        assert found == read_manifest(f"reca-0/development/{stage}")["outputs"]
    assert not (inside / "work/small").exists()
    assert main(["audit", "one", "reca", "base", "cache", "data"]) == 0


def no_model(*_):
    pytest.fail("a model is loaded")


def test_a_stage_that_is_current_is_not_made_again(inside, monkeypatch):
    """Other options of scoring score again, damaged evidence is observed again, a damaged image sampled again."""
    assert small_run("reca-0", "two") == 0
    place = inside / "two/reca-0/laptop/development"
    stages = ("samples", "evidence", "scores")
    before = times(place, *stages)
    with monkeypatch.context() as patch:
        patch.setattr("reca.models.registry.load_model", no_model)
        assert small_run("reca-0", "two") == 0 and times(place, *stages) == before
        assert small_run("reca-0", "two", options={"partial": True}) == 0
        changed = times(place, *stages)
        assert [n for n in stages if changed[n] != before[n]] == ["scores"]
        (place / "evidence/evidence.jsonl").write_text("{}")
        assert small_run("reca-0", "two") == 0
        again = times(place, *stages)
        assert again["samples"] == before["samples"] and again["evidence"] != before["evidence"]
    images = place / "samples/images.tar"
    whole = images.read_bytes()
    images.write_bytes(flipped(whole))
    assert small_run("reca-0", "two") == 0 and images.read_bytes() == whole


def test_a_killed_evaluation_goes_on_at_its_stage(inside, monkeypatch):
    from reca.evaluation.observers import examiner

    def stop(view):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(examiner, "observe", stop)
        assert small_run("reca-0", "three") == 130
    place = inside / "three/reca-0/laptop/development"
    assert (place / "samples/manifest.json").is_file()
    assert not (place / "evidence").exists() and not (place / "scores").exists()
    monkeypatch.setattr("reca.models.registry.load_model", no_model)
    assert small_run("reca-0", "three") == 0 and (place / "scores/manifest.json").is_file()


def test_folders_of_the_former_stages_are_replaced(inside, evaluated):
    """Results of a reca whose stages were named generate, examine and grade."""
    for old, stage in (("generate", "samples"), ("examine", "evidence"), ("grade", "scores")):
        folder = inside / "four/reca-0/laptop/development" / stage
        with Stage(old, folder, inputs={}, section={}) as made:
            (made.staging / "images.tar").write_text("old")
    assert small_run("reca-0", "four") == 0
    assert read_manifest(folder)["stage"] == "score" and not (folder / "images.tar").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"kind": "geneval"},
            "--section: reca-0.laptop: geneval is sampled and observed in shards",
        ),
        ({"name": "reca"}, "--section: run 'reca': must end in its seed"),
        ({"model": "nowhere"}, "nowhere"),
    ],
)
def test_an_evaluation_that_cannot_be_done_is_one_line(inside, capsys, options, said):
    assert small_run(**{"name": "reca-0", "out": "x", **options}) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (inside / "x").exists()


def test_choice_refuses_test_scores(inside, evaluated, capsys):
    words = ["choose", "--scores", "reca-0/test/scores", "--out", "other/guidance.json"]
    assert main(words) == 2
    assert "guidance is chosen on development prompts" in capsys.readouterr().err


def test_the_two_forms_of_score_are_not_mixed(inside, capsys):
    section = json.dumps({"kind": "geneval", "source": "geneval"})
    for words, said in {
        ("score",): "use `reca score BENCHMARK FOLDER`",
        ("score", "geneval"): "FOLDER is missing",
        ("score", "geneval", "x", "--samples", "y"): "without --section and --samples",
        ("score", "--section", section): "--samples and --out",
        ("score", "mme", "x"): "has no official layout of images",
        ("score", "laptop", "x"): "has no official layout of images",
        ("score", "coco", "x"): "is not known; choose one of",
        ("score", "geneval", "x"): "x: no such folder of images",
        ("score", "geneval", "data"): "run `reca fetch geneval --out data/geneval`",
    }.items():
        assert main(list(words)) == 2
        assert said in capsys.readouterr().err


# ---- the work folder ----
def test_a_stage_removes_no_work_but_its_own(inside):
    """By default two stages never share a work folder, so the end of one leaves the other's state alone."""
    other = inside / "work/laptop/showo_tiny/reca-0/checkpoints"
    other.mkdir(parents=True)
    section = {"family": "showo", "data": {"reconstruct": DATA}}
    run("cache", section=section, model="base", data="data/world", use="draw", out="typed/cache")
    assert other.is_dir() and (inside / "typed/cache/manifest.json").is_file()
    shutil.rmtree(inside / "work/laptop")


@pytest.mark.parametrize("work", [".", "..", "typed", "/"])
def test_a_work_folder_that_holds_more_is_refused(inside, capfd, work):
    """It would be removed with all that is in it."""
    words = [
        "cache",
        "--model",
        "base",
        "--data",
        "data/world",
        "--use",
        "draw",
        "--out",
        "typed/more",
    ]
    section = json.dumps({"family": "showo", "data": {"reconstruct": DATA}})
    assert main([*words, "--section", section, "--work", work]) == 2
    error = capfd.readouterr().err
    assert f"--work {work}: " in error and error.count("\n") == 1
    assert "holds" in error or "contains" in error
    assert (inside / "base/manifest.json").is_file()


def test_a_full_disk_is_found_before_training(inside, monkeypatch, capfd):
    """The path and the bytes are named; no work folder and no step of training is left."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert main(["align", *_section_for("align")]) == 2
    size = sum(path.stat().st_size for path in (inside / "base").rglob("*") if path.is_file())
    assert capfd.readouterr().err.endswith(
        f"reca align: x: cannot write {size} bytes here (only 1000 bytes are free); free space or choose a "
        "writable folder\n"
    )
    assert not (inside / "x").exists() and not (inside / "work/x").exists()


# ---- damage --------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", DAMAGE)
def test_a_flipped_bit_stops_whatever_reads_it(inside, evaluated, capfd, case):
    """Every stage hashes what it reads before it uses it: exit 2, the file named, nothing written."""
    file, words = DAMAGE[case]
    sound = (inside / file).read_bytes()
    Image.new("RGB", (16, 16)).save(inside / "p.png")
    (inside / file).write_bytes(flipped(sound))
    try:
        assert main([*words, *_section_for(words[0])]) == 2
    finally:
        (inside / file).write_bytes(sound)
    error = capfd.readouterr().err.splitlines()
    assert f"{file}: " in error[-1]
    assert "git restore" in error[-1] or "run the stage again" in error[-1], (
        "a record may not parse"
    )
    assert not (inside / "x").exists() and not list(inside.glob("work/x*"))


def flipped(data):
    """One bit in the middle: in the tensors of a safetensors file, in the rows of a parquet file."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _section_for(verb):
    if verb in ("draw", "ask", "choose"):
        return []
    benchmark = {"kind": "laptop", "seed": 0, "prompts": 1, "questions": 4, "reconstructions": 2}
    section = {
        "cache": {"family": "showo", "data": {"reconstruct": DATA}},
        "align": {"family": "showo", "align": RECIPE, "data": {"reconstruct": DATA, "answer": DATA}},
        "sample": {"family": "showo", "run": "reca-0", "benchmark": benchmark,
                     "sampler": {"steps": 2, "guidance": [0.0]}},
        "score": benchmark,
        "observe": benchmark,
    }[verb]  # fmt: skip
    words = ["--section", json.dumps(section)]
    if verb == "align":
        words += ["--data", "reconstruct=data/world", "--data", "answer=data/world"]
        words += ["--cache", "draw=cache/draw", "--cache", "read=cache/read"]
        words += ["--model", "base", "--arm", "reca", "--seed", "0", "--out", "x"]
    return words if verb in ("score", "observe") else [*words, "--work", "work/x"]
