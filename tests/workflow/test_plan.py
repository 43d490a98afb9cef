"""What Snakemake would do, said quickly, without network and without torch."""

from __future__ import annotations

import os
import re

import pytest
import yaml

from reca.config.compose import load, names
from reca.config.validate import aligned_roles, needed_sources

pytestmark = pytest.mark.workflow

PLANS = {
    # BAGEL: five bases, each with a cache (its recipe reads nothing), 5 x 2 trained checkpoints; Show-o: three bases,
    # each with two caches, 3 x 2 checkpoints; a process per arm and split, which covers all seeds
    "laptop": {
        "render": 1, "base": 8, "cache": 11, "align": 16, "evaluate_development": 3, "evaluate_development_1": 3,
        "choose": 2, "evaluate_test": 3, "evaluate_test_1": 3, "report": 1,
    },
    "laptop_smoke": {
        "render": 1, "base": 1, "cache": 2, "align": 3, "evaluate_development": 4, "choose": 1,
        "evaluate_test": 4, "report": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("experiment", PLANS)
def test_jobs_by_rule(plans, experiment):
    assert plans.plan(experiment) == PLANS[experiment]


def test_the_paper_is_planned_without_network_and_without_torch(plans, tmp_path):
    for heavy in ("torch", "transformers", "diffusers"):
        (tmp_path / f"{heavy}.py").write_text("raise RuntimeError('imported while planning')")
    nowhere = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
    blocked = f"{tmp_path}:{plans.root}:{plans.root}/kernels"
    jobs = plans.plan("paper_showo_512", PYTHONPATH=blocked, **nowhere)
    # base and RecA on GenEval and DPG-Bench in 8 shards, WISE and T2I-CompBench in 4
    assert {name: jobs[name] for name in jobs if name != "fetch"} == {
        "base": 1, "cache": 2, "align": 1, "sample": 48, "observe": 40, "ask": 8, "score": 8, "report": 1,
    }  # fmt: skip
    assert jobs["fetch"] == len({name for _, name in needed_sources(load("paper_showo_512"))})


def test_cluster_jobs_ask_for_what_they_use_whatever_the_login_node_has(plans):
    """Two cores where Snakemake runs: threads are cut to that, what a job asks Slurm for is not."""
    said = plans.look(
        *("--dry-run", "--cores", "2", "--profile", "slurm"), "--config", "experiment=paper_bagel"
    )
    asked = {}
    for job in re.split(r"\n(?=rule )", said):
        rule = re.match(r"(rule \w+):", job)
        found = re.search(r"    resources: (.*)", job)
        if rule and found:
            pairs = dict(pair.split("=") for pair in found[1].split(", "))
            names = ("gpu", "mem_mb", "cpus_per_task")
            asked.setdefault(rule[1], set()).add(tuple(pairs.get(name) for name in names))
    assert asked["rule align"] == {("6", "524288", "48")}
    assert asked["rule cache"] == {("1", "87381", "8")}
    assert asked["rule sample"] == {("1", "87381", None)}
    assert asked["rule observe"] == {("1", "32000", None), ("1", "131072", None)}
    assert asked["rule ask"] == {("0", "4000", None)}
    local = (
        (plans.root / "workflow/Snakefile").read_text().split("localrules:")[1].split("rule all")[0]
    )
    assert "ask," in local.split()  # judges need the network


def test_a_scale_has_folders_of_its_own(plans):
    """What a tiny run writes and downloads is not where the real one does; BAGEL is sharded over two processes."""
    said = plans.look(
        "--dry-run", "--printshellcmds", "--config", "experiment=paper_bagel", "scale=tiny"
    )
    commands = [line for line in said.splitlines() if " -m reca " in line]
    assert commands and not any("results/paper_bagel/" in line for line in commands)
    (align,) = [line for line in commands if " align " in line]
    assert (
        "--nproc-per-node=2" in align
        and "--out results/paper_bagel-tiny/bagel_7b/reca/seed-0" in align
    )
    (fetch,) = [line for line in commands if " fetch bagel-7b-mot " in line]
    assert "--out data/tiny/bagel-7b-mot" in fetch
    (report,) = [line for line in commands if " reca report " in line]
    assert "--experiment paper_bagel-tiny" in report
    unknown = plans.look("-n", "--config", "scale=tyni", check=False)
    assert "--config scale=tyni: allowed: tiny" in unknown


def test_conversations_come_with_the_images_they_point_into(plans):
    said = plans.look(
        "--dry-run",
        "--printshellcmds",
        "--until",
        "cache",
        "--config",
        "experiment=paper_showo_512",
    )
    (read,) = [line for line in said.splitlines() if "--use read" in line]
    for first in ("coco", "gqa", "ocr_vqa", "textvqa", "vg"):
        assert f"--companion={first}=data/llava-images-{first.replace('_', '-')}" in read
    assert "--companion" not in next(line for line in said.splitlines() if "--use draw" in line)


def test_a_task_without_weight_fetches_caches_and_reads_nothing(checkout):
    """Of 64 GB of conversations and their images not one file."""
    checkout.edit("config/align/showo_clip_512.yaml", "i2t: {weight: 1.0", "i2t: {weight: 0.0")
    said = checkout.look("--dry-run", "--printshellcmds", "--config", "experiment=paper_showo_512")
    commands = [line for line in said.splitlines() if " -m reca " in line]
    unwanted = ("data/llava-", "fetch llava-", "=answer=")
    assert not [command for command in commands for word in unwanted if word in command]
    assert sum(" reca cache " in command for command in commands) == 1
    (align,) = [command for command in commands if " reca align " in command]
    assert "--cache=draw=" in align and "--cache=read=" not in align


def test_a_file_of_prompts_is_an_input_of_the_arms_that_read_it(checkout):
    (checkout.root / "prompts.txt").write_text("describe the picture\n")
    experiment = {
        "defaults": ["laptop_smoke", "_self_"],
        "name": "own_prompts",
        "arms": ["base", "reca", "sft"],
        "models": {"showo_tiny": {"align": {"prompts": "file", "prompts_file": "prompts.txt"}}},
    }
    text = "# @package _global_\n" + yaml.safe_dump(experiment, sort_keys=False)
    (checkout.root / "config/experiment/own_prompts.yaml").write_text(text)
    said = checkout.look("--dry-run", "--config", "experiment=own_prompts")
    jobs = [part.split("rule ")[0] for part in said.split("rule align:")[1:]]
    assert {("arm=sft" in job, "prompts.txt" in job) for job in jobs} == {
        (True, False),
        (False, True),
    }


def test_a_precision_of_caches_is_said_only_where_it_is_not_the_default(plans):
    def sections(experiment):
        said = plans.look(
            "--dry-run",
            "--printshellcmds",
            "--until",
            "cache",
            "--config",
            f"experiment={experiment}",
        )
        return [line for line in said.splitlines() if " reca cache " in line]

    assert all('"cache_dtype": "bf16"' in line for line in sections("paper_bagel"))
    laptop = sections("laptop_smoke")
    assert laptop and not any("cache_dtype" in line for line in laptop)


@pytest.mark.parametrize("experiment", ["laptop_pretrain", "laptop_pretrain_bagel"])
def test_the_base_model_from_nothing_has_a_plan(plans, experiment):
    assert plans.plan(experiment) == {
        "render": 2, "pretrain_part": 2, "pretrain_base": 1,
    }  # fmt: skip


def test_the_whole_paper_has_a_plan(plans):
    """All families x benchmarks x (base, RecA), offline: every job counted."""
    paper = load("paper")
    assert {model.family for model in paper.models.values()} == {
        "showo", "openuni", "harmon", "bagel",
    }  # fmt: skip
    jobs = plans.plan(
        "paper", **{name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY")}
    )
    assert jobs.pop("fetch") == len({name for _, name in needed_sources(paper)})
    # 50 pairs of model and benchmark, two runs each; 173 of their shards are observed or judged, 88 only answered
    assert jobs == {
        "base": 8, "cache": 13, "align": 8, "sample": 522, "observe": 288, "ask": 58, "score": 100, "report": 1,
    }  # fmt: skip
    shards = {name: b.shards for name, b in paper.benchmarks.items()}
    pairs = [n for m in paper.models.values() for n in m.benchmarks or paper.benchmarks]
    assert 2 * len(pairs) == jobs["score"]
    assert 2 * sum(shards[name] for name in pairs) == jobs["sample"]


def test_the_whole_paper_takes_the_seeds_of_the_families_own_recipes():
    """And each model's runs are planned under its own seeds alone (the job counts above)."""
    paper = load("paper")
    own = [load(n) for n in ("paper_showo_512", "paper_showo_256", "paper_showo_vq", "paper_openuni_l",
                             "paper_openuni_b", "paper_harmon_15b", "paper_harmon_05b", "paper_bagel")]  # fmt: skip
    found = {name: other.seeds for other in own for name in other.models}
    for name, model in paper.models.items():
        assert (model.seeds or paper.seeds) == found[name], name


@pytest.mark.parametrize(
    "experiment", [n for n in names() if n.startswith(("paper_", "ablation_", "janus"))]
)
def test_every_published_recipe_has_a_plan(plans, experiment):
    """One that goes on where another ended says which result it needs first."""
    models = load(experiment).models
    earlier = [m.weights.path for m in models.values() if str(m.weights.path).startswith("results")]
    if earlier:
        said = plans.look("-n", "--config", f"experiment={experiment}", check=False)
        first = earlier[0].split("/")[1]
        assert f"weights.path = {earlier[0]!r}: no such folder; first run: snakemake" in said
        assert f"--config experiment={first}" in said and plans.plan(first)["align"]
    else:
        assert plans.plan(experiment)["base"] == len(models)


def test_the_tables_of_the_paper_are_a_target(plans):
    said = plans.look("paper_tables", "-n", "--config", "experiment=paper_showo_512")
    assert "paper_tables" in said and "results/paper_showo_512/paper/manifest.json" in said


def test_the_plan_is_said_at_once(plans):
    """Processor time, as a busy machine stretches the clock; three seconds by the clock on a free one."""
    spent = []
    for _ in range(2):
        before = os.times()
        plans.snakemake("--dry-run", "--quiet", experiment="laptop")
        after = os.times()
        spent.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
    assert min(spent) < 5


def test_lint_and_format_are_clean(plans):
    plans.look("--lint")
    plans.run("snakefmt", "--check", "workflow")


def test_the_profile_is_found_and_gives_way_to_the_command_line(plans):
    link = plans.root / "slurm"
    assert link.is_symlink() and os.readlink(link) == "workflow/profiles/slurm"
    profile = yaml.safe_load((link / "config.yaml").read_text())
    assert profile["executor"] == "slurm" and profile["slurm-status-command"] == "squeue"
    assert profile["config"] == ["experiment=paper"]
    default = yaml.safe_load((plans.root / "workflow/profiles/default/config.yaml").read_text())
    assert not set(default) & set(profile)  # the default profile would win
    said = plans.look(
        "--cores", "all", "--profile", "slurm", "--executor", "dryrun", "--dry-run",
        "--config", "experiment=laptop_smoke",
    )  # fmt: skip
    assert "results/laptop_smoke/report/index.html" in said and "results/paper" not in said


def test_every_rule_states_what_it_needs(plans):
    """Log, benchmark, retries and resources on every rule that runs a job."""
    seen = 0
    for path in (plans.root / "workflow/rules").glob("*.smk"):
        for block in f"\n{path.read_text()}".split("\nrule ")[1:]:
            seen += 1
            for word in (
                "log:",
                "benchmark:",
                "retries:",
                "resources:",
                "threads:",
                "params:",
                "conda:",
            ):
                assert f"\n    {word}" in block, (
                    f"{path.name}: rule {block.split(':')[0]} has no {word}"
                )
    assert seen >= 13


def test_dvc_stages_name_what_the_plan_makes(plans):
    """DVC's outputs are the folders of the plan, each once, and no path belongs to two stages; all persist."""
    plan = yaml.safe_load((plans.root / "dvc.yaml").read_text())
    given = {name: value for entry in plan["vars"] for name, value in entry.items()}
    experiment = load(given["experiment"])
    assert set(given["models"]) == set(experiment.models)
    for model, found in given["models"].items():
        assert found["world"] in aligned_roles(experiment, model).values()
    outs = {}
    for stage in plan["stages"].values():
        written = stage.get("do", stage)
        keys = given[stage["foreach"].strip("${}")] if "foreach" in stage else [""]
        for kind in ("outs", "metrics", "plots"):
            for name, options in (pair for out in written.get(kind, []) for pair in out.items()):
                for key in keys:
                    path = name.replace("${experiment}", given["experiment"])
                    path = path.replace("${key}", key).replace("${item}", key)
                    assert path not in outs and options["persist"] is True
                    outs[path] = kind, options.get("cache", True)
    report = "results/laptop/report"
    assert outs == {
        "build/laptop.yaml": ("outs", False),
        **{f"data/laptop-{world}": ("outs", True) for world in ("reconstruct",)},
        **{f"results/laptop/{model}": ("outs", True) for model in experiment.models},
        **{f"{report}/{f}": ("outs", True) for f in ("index.html", "manifest.json", "run.json")},
        f"{report}/outcomes.json": ("metrics", False),
        f"{report}/outcomes.csv": ("plots", True),
    }


def test_git_ignores_results_data_and_work_whatever_dvc_writes(checkout):
    """By our own file: those that DVC writes are among what is ignored. The numbers of a report belong to git."""
    checkout.run("git", "init", "--quiet")
    ignored = [
        "data/.gitignore", "data/laptop-reconstruct/train.parquet", "work/laptop/x/lock", "results/.gitignore",
        "results/laptop/.gitignore", "results/laptop/showo_tiny_bound/base/model.safetensors",
        "results/laptop/report/.gitignore", "results/laptop/report/index.html",
        "results/laptop/report/outcomes.csv", "build/laptop.yaml", "logs/x.log",
    ]  # fmt: skip
    for name in [*ignored, "results/laptop/report/outcomes.json"]:
        (checkout.root / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout.root / name).write_text("x")
    assert checkout.run("git", "check-ignore", *ignored).split() == ignored
    others = ("git", "ls-files", "--others", "--exclude-standard", "results", "data", "work")
    assert checkout.run(*others).split() == ["results/laptop/report/outcomes.json"]
