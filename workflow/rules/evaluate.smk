"""Sample, observe, score.

Small benchmarks: one process for all seeds of an arm on one split, at all guidance levels. Large ones (the paper's) are
sampled and observed in shards, one GPU each, and scored as a whole.

A judge needs no GPU; its ledger lies in `ledgers/`, outlives every rerun and is never paid twice.
"""

BENCHMARK = f"{RESULTS}/{{model}}/{{run}}/{{benchmark}}/{{split}}"


# ---- small benchmarks: one process -------------------------------------------------------------------
# Samples and evidence are no outputs of the plan: Snakemake would remove them before a job that only scores again.
# Each has its own record, by which `reca evaluate` knows what is current.
for split in ("development", "test"):
    for number, (names, seeds, models) in enumerate(evaluated_alike(split)):

        rule:
            name:
                f"evaluate_{split}" + (f"_{number}" if number else "")
            input:
                lambda wc: records_in(dict.fromkeys(checkpoints_of(wc).values())),
                guidance=lambda wc: manifests(guidance_folders(wc.model, wc.split)),
            output:
                [
                    f"{RESULTS}/{{model}}/{{arm}}-{seed}/{name}/{{split}}/scores/manifest.json"
                    for seed in seeds
                    for name in names
                ],
            log:
                f"logs/{NAME}/{{model}}/{{arm}}-{{split}}.log",
            benchmark:
                f"benchmarks/{NAME}/{{model}}/{{arm}}-{{split}}.tsv"
            wildcard_constraints:
                model=one_of(models),
                arm=one_of(EXPERIMENT.arms),
                split=split,
            priority: EARLY if split == "development" else 0
            retries: 2
            conda:
                ENVIRONMENT
            threads: 1
            resources:
                gpu=one_gpu,
                mem_mb=memory,
                runtime=asks("runtime_minutes"),
            params:
                section=lambda wc: section(of_evaluation(wc)),
                code=lambda wc: code_of_evaluation(wc),
                models=lambda wc: pairs("model", checkpoints_of(wc)),
                guidance=lambda wc: [
                    f"--guidance={folder}/guidance.json"
                    for folder in guidance_folders(wc.model, wc.split)
                ],
                work=f"work/{NAME}/{{model}}/{{arm}}-{{split}}",
                out=f"{RESULTS}/{{model}}",
            shell:
                "OMP_NUM_THREADS={threads} python3 -m reca evaluate --section {params.section:q}"
                " {params.models:q} --split {wildcards.split} {params.guidance:q}"
                " --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"


rule choose:
    input:
        lambda wc: score_manifests("development", [wc.model], SWEPT_ON),
    output:
        f"{RESULTS}/{{model}}/guidance/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/guidance.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/guidance.tsv"
    wildcard_constraints:
        model=one_of(SWEPT),
    retries: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=code("choose"),
        scores=lambda wc, input: folders_of(input),
        out=f"{RESULTS}/{{model}}/guidance/guidance.json",
    shell:
        "python3 -m reca choose --scores {params.scores:q} --out {params.out:q} 2>&1 | tee {log:q}"


# ---- large benchmarks: shards ------------------------------------------------------------------------
OBSERVED_SHARDS = [name for name in SHARDED if KIND[name].evidence != "none"]


rule sample:
    input:
        lambda wc: f"{checkpoint_folder(wc.model, wc.run)}/manifest.json",
        data=lambda wc: manifests(benchmark_roles(wc.benchmark, "sample").values()),
    output:
        f"{BENCHMARK}/samples/{{shard}}/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-{{shard}}-samples.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-{{shard}}-samples.tsv"
    wildcard_constraints:
        benchmark=one_of(SHARDED),
        split="test",
    retries: 2
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=one_gpu,
        mem_mb=memory_of_one_gpu,
        runtime=asks("runtime_minutes"),
    params:
        section=lambda wc: section(
            of_sampling(wc.model, wc.run, wc.benchmark, wc.split)
        ),
        code=lambda wc: code("sample", wc.model, wc.benchmark),
        model=subpath(input[0], parent=True),
        seed=lambda wc: wc.run.rsplit("-", 1)[1],
        shard=lambda wc: wc.shard.replace("-of-", "/"),
        sources=lambda wc: pairs("source", benchmark_roles(wc.benchmark, "sample")),
        work=f"work/{NAME}/{{model}}/{{run}}-{{benchmark}}-{{split}}-{{shard}}",
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca sample --section {params.section:q}"
        " --model {params.model:q} --seed {params.seed} --shard {params.shard} {params.sources:q}"
        " --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"


rule observe:
    input:
        f"{BENCHMARK}/samples/{{shard}}/manifest.json",
        data=lambda wc: manifests(benchmark_roles(wc.benchmark, "observe").values()),
    output:
        f"{BENCHMARK}/evidence/{{shard}}/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-{{shard}}-evidence.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-{{shard}}-evidence.tsv"
    wildcard_constraints:
        benchmark=one_of(name for name in OBSERVED_SHARDS if observed_here(name)),
    retries: 2
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=one_gpu,
        mem_mb=memory_of_observing,
        runtime=1440,
    params:
        section=lambda wc: section(of_observing(wc.benchmark)),
        code=lambda wc: code("observe", None, wc.benchmark),
        samples=subpath(input[0], parent=True),
        sources=lambda wc: pairs("source", benchmark_roles(wc.benchmark, "observe")),
        ledger=f"ledgers/{NAME}/{{model}}/{{run}}-{{benchmark}}-{{shard}}.jsonl",
        work=f"work/{NAME}/{{model}}/{{run}}-{{benchmark}}-{{split}}-{{shard}}-evidence",
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca observe --section {params.section:q}"
        " --samples {params.samples:q} {params.sources:q} --ledger {params.ledger:q}"
        " --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"


# Judges are asked where Snakemake runs: compute nodes may have no network.
use rule observe as ask with:
    wildcard_constraints:
        benchmark=one_of(name for name in OBSERVED_SHARDS if not observed_here(name)),
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=1440,


rule score:
    input:
        samples=lambda wc: shard_manifests("samples", wc),
        evidence=lambda wc: shard_manifests("evidence", wc),
        data=lambda wc: manifests(benchmark_roles(wc.benchmark, "score").values()),
    output:
        f"{BENCHMARK}/scores/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-scores.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-scores.tsv"
    wildcard_constraints:
        benchmark=one_of(SHARDED),
        split="test",
    retries: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        section=lambda wc: section(of_scoring(wc.benchmark, wc.split)),
        code=lambda wc: code("score", None, wc.benchmark),
        samples=lambda wc, input: folders_of(input.samples),
        evidence=lambda wc, input: folders_of(input.evidence),
        sources=lambda wc: pairs("source", benchmark_roles(wc.benchmark, "score")),
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca score --section {params.section:q} {params.sources:q}"
        " --samples {params.samples:q} --evidence {params.evidence:q} --out {params.out:q}"
        " 2>&1 | tee {log:q}"
