"""Every verb explains itself with an example; mistakes are one line and exit 2."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from reca.cli import main, parser
from reca.commands import log_file
from reca.commands.interact import model_folder
from reca.commands.verbs import VERBS

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **options):
    command = [sys.executable, "-m", "reca", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.fixture(autouse=True)
def _in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("RECA_DEBUG", raising=False)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_help_of_every_verb_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb.name, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and f"example:\n  reca {verb.name}" in text


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_example_parses(verb):
    import shlex

    words = shlex.split(verb.example)
    assert words[:2] == ["reca", verb.name]
    assert parser().parse_args(words[1:]).verb == verb.name


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_leads_to_a_function(verb):
    module, _, function = verb.runs.partition(":")
    path = ROOT / (module.replace(".", "/") + ".py")
    assert f"def {function}(arguments: Namespace)" in path.read_text()


def test_help_answers_at_once_and_lists_all_verbs():
    started = time.monotonic()
    done = run("--help")
    assert time.monotonic() - started < 3  # 0.1 s on a free core
    assert done.returncode == 0 and all(
        f"    {verb.name} " in done.stdout + " " or f"    {verb.name}\n" in done.stdout
        for verb in VERBS
    )


def test_parsing_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'diffusers', 'numpy', 'yaml', 'hydra', 'snakemake'}"
    code = f"import sys, reca.cli; reca.cli.parser(); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_version(capsys):
    import reca

    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"reca {reca.__version__}\n"


# ---- exit codes ----------------------------------------------------------------------------------
def test_users_mistake_is_one_line_and_exit_2():
    done = run("compose", "laptop", "seeds=[0,0]")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "reca compose: experiment 'laptop': seeds = [0, 0]: must not hold a value twice\n"
    )


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("RECA_DEBUG", "1")
    with pytest.raises(ValueError, match="labtop"):
        main(["compose", "labtop"])


def test_ctrl_c_is_one_line_and_exit_130(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("reca.commands.configure.compose", interrupted)
    assert main(["compose", "laptop"]) == 130
    assert (
        capsys.readouterr().err
        == "reca compose: stopped by Ctrl-C; run the same command again to resume\n"
    )


def test_machine_trouble_is_exit_1(monkeypatch, capsys):
    def full(arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reca.commands.configure.compose", full)
    assert main(["compose", "laptop"]) == 1
    assert capsys.readouterr().err == "reca compose: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (MemoryError(), 1, "out of memory; "),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 1, "out of"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 328 MiB"),
            1,
            "the GPU is out of memory",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory"),
        (RecursionError("maximum recursion depth exceeded"), 2, "an input is nested too deeply"),
        (
            RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler"),
            1,
            "align.compile needs a C++ compiler; install one, such as g++, or set align.compile=false (",
        ),
    ],
)
def test_what_has_no_words_of_its_own_is_one_line(monkeypatch, capsys, error, status, said):
    def fails(arguments):
        raise error

    monkeypatch.setattr("reca.commands.configure.compose", fails)
    assert main(["compose", "laptop"]) == status
    printed = capsys.readouterr().err
    assert printed.startswith(f"reca compose: {said}") and printed.count("\n") == 1


def test_a_small_address_space_is_one_line_at_once():
    """Torch itself hangs or aborts there."""
    limited = 'ulimit -v 1200000; exec "$0" -m reca check laptop'
    command = ["bash", "-c", limited, sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert "the address space is limited to 1.1 GiB (ulimit -v)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_our_own_errors_keep_their_traceback(monkeypatch):
    def wrong(arguments):
        raise AssertionError("ours")

    monkeypatch.setattr("reca.commands.configure.compose", wrong)
    with pytest.raises(AssertionError):
        main(["compose", "laptop"])


def test_what_no_sampler_can_use_is_refused_before_a_model_is_read(tmp_path, capsys):
    assert main(["draw", "x", "--model", str(tmp_path), "--guidance", "nan"]) == 2
    assert "sampling.guidance is nan; it must be 0 or more" in capsys.readouterr().err
    assert main(["draw", "x", "--model", str(tmp_path), "--steps", "0"]) == 2
    assert "sampling.steps is 0; it must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["draws"], ["align", "--seed", "x"], ["fetch"]])
def test_wrong_words_are_exit_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and "usage: reca" in capsys.readouterr().err


# ---- configuration verbs -------------------------------------------------------------------------
def test_compose_prints_and_writes(tmp_path, capsys):
    assert main(["compose", "laptop", "seeds=[5]"]) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "laptop.yaml"
    assert main(["compose", "laptop", "seeds=[5]", "--out", str(out)]) == 0
    assert out.read_text() == printed and "seeds:\n- 5\n" in printed
    assert main(["compose", "laptop", "seeds=[5]", "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith("unchanged\n")


def test_schema_prints_what_lies_in_the_workflow(capsys):
    from reca.config.compose import SCHEMA_PATH

    assert main(["schema"]) == 0
    assert capsys.readouterr().out == (ROOT / SCHEMA_PATH).read_text()


def test_check_says_which_families_cannot_run_yet(capsys, monkeypatch):
    monkeypatch.setattr("reca.models.registry.runnable", lambda: ["showo"])
    assert main(["check", "paper_bagel"]) == 0
    text = capsys.readouterr().out
    assert "models.bagel_7b: configuration only, family bagel cannot run yet" in text
    assert "4.5 h on six A100 80 GB for training (reported)" in text


@pytest.mark.parametrize("experiment", ["laptop", "paper"])
def test_check_reads_networks_as_the_family_does(experiment, capsys):
    assert main(["check", experiment]) == 0
    assert "network fits family showo" in capsys.readouterr().out


def test_check_finds_what_only_the_family_knows(capsys):
    assert main(["check", "laptop", "models.showo_tiny_bound.network.projector=[64, 64]"]) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1
        and "models.showo_tiny_bound: network.projector [64, 64] must map" in error
    )


BEFORE_A_RUN = {
    "sampler.options.order=up": "models.showo_tiny_bound: sampling.options.order = 'up': must be one of",
    "network.llm=null": "models.showo_tiny_bound: network.llm = None: must be a mapping",
    "network.llm.num_hidden_layers=0": "network.llm.num_hidden_layers = 0: must be a whole number above 0",
    "network.max_text=many": "network.max_text = 'many': must be a whole number",
    "network.options.encode_batch=0": "options.encode_batch = 0: must be at least 1",
    "network.llm.num_attention_heads=8": "network.llm.num_attention_heads is 4, but 8 in the configuration",
    "network.vq=4": "models.showo_tiny_bound.network.vq = 4: must be a mapping",
    "network.vq.enc_ch_mult=4": "network.vq.enc_ch_mult = 4: must be a list, one width for each level",
    "network.vq.enc_ch_mult=[]": "network.vq.enc_ch_mult = []: must be a list, one width for each level",
    "weights.path=nowhere": "models.showo_tiny_bound.weights.path = 'nowhere': no such folder",
}


def test_check_names_the_experiment_that_makes_a_base_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # without its results
    for seed in range(3):  # shipped, unlike the bases that read less
        (tmp_path / f"weights/bagel_tiny_bound/{seed}").mkdir(parents=True)
    for given, maker in (
        ("laptop_why", "laptop_reading_100"),
        ("paper_harmon_plus", "paper_harmon_plus_stage1"),
    ):
        assert main(["check", given]) == 2
        assert capsys.readouterr().err.endswith(f"--config experiment={maker}\n")


@pytest.mark.parametrize("override", BEFORE_A_RUN)
def test_check_finds_it_before_anything_runs(override, capsys):
    assert main(["check", "laptop", f"models.showo_tiny_bound.{override}"]) == 2
    error = capsys.readouterr().err
    assert BEFORE_A_RUN[override] in error and error.count("\n") == 1


def test_check_knows_the_share_that_may_be_unreadable(capsys):
    assert main(["check", "laptop", "data.reconstruct.options={max_unreadable: 2}"]) == 2
    assert "max_unreadable = 2: must be a number from 0 to 1" in capsys.readouterr().err


def test_check_knows_the_options_of_readers(capsys):
    assert main(["check", "laptop", "data.reconstruct.options.colunm=x"]) == 2
    assert "data.reconstruct.options: data kind world: unknown option 'colunm'" in (
        capsys.readouterr().err
    )
    assert main(["check", "laptop", "data.reconstruct.options.row_groups='4'"]) == 2
    assert "data.reconstruct.options: row_groups = '4': must be a whole number or null\n" in (
        capsys.readouterr().err
    )


# ---- section text --------------------------------------------------------------------------------
def test_section_from_text_file_and_nonsense(tmp_path):
    from reca.commands.inputs import pairs, read_section

    assert read_section('{"a": [1]}') == {"a": [1]}
    (tmp_path / "s.json").write_text('{"a": 2}')
    assert read_section(f"@{tmp_path}/s.json") == {"a": 2}
    with pytest.raises(ValueError, match="--section: not valid JSON"):
        read_section("{a: 1}")
    with pytest.raises(ValueError, match="--section: must be a JSON object, not list"):
        read_section("[1]")
    for part, said in {
        '"data": []': "data is a list, not an object",
        '"cache_dtype": ["fp32"]': "cache_dtype is a list, not a text",
        '"family": {}': "family is an object, not a text",
        '"visits": 5': "visits is a number, not an object",
    }.items():
        with pytest.raises(ValueError, match=f"--section: {said}"):
            read_section(f"{{{part}}}")
    with pytest.raises(ValueError, match=r"--section @none\.json: cannot read \(No such file"):
        read_section("@none.json")
    assert pairs("--data", ["reconstruct=data/a", "answer=b=c"]) == {
        "reconstruct": Path("data/a"),
        "answer": Path("b=c"),
    }
    with pytest.raises(ValueError, match="--data 'x': write ROLE=DIR"):
        pairs("--data", ["x"])
    with pytest.raises(ValueError, match="--data: role 'a' is given twice"):
        pairs("--data", ["a=1", "a=2"])


def test_audit_exit_code_tells_a_broken_trail(tmp_path, monkeypatch, capsys):
    from reca.core.artifacts import Stage

    monkeypatch.chdir(tmp_path)
    with Stage("render", "results/a", inputs={}, section={}) as stage:
        (stage.staging / "file").write_text("1")
    assert main(["audit"]) == 0
    Path("results/a/file").write_text("2")
    assert main(["audit"]) == 1
    assert "broken: results/a/file: content differs" in capsys.readouterr().out


def test_log_file_is_written_beside_stderr(tmp_path):
    import logging

    log_file.start_log(str(tmp_path / "logs" / "x.log"))
    logging.getLogger("reca.test").info("a line")
    assert "reca.test: a line" in (tmp_path / "logs" / "x.log").read_text()
    logging.basicConfig(force=True)


def test_a_model_that_nobody_named_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "weights/showo_tiny"
    folder.mkdir(parents=True)
    (folder / "reca_model.json").write_text("{}")
    assert model_folder(None) == Path("weights/showo_tiny")
    assert "model: weights/showo_tiny (choose another with --model)" in capsys.readouterr().err
    assert model_folder("mine") == Path("mine") and not capsys.readouterr().err


def test_a_model_is_not_checked_with_an_empty_text(capsys):
    """It is the unconditional condition: the check of guidance would blame the model."""
    assert main(["check-model", "weights/bagel_tiny", "--text", "a circle", "--text", " "]) == 2
    assert "an empty text is the unconditional condition" in capsys.readouterr().err
