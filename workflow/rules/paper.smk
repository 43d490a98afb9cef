"""The paper's benchmarks: drawn and examined in shards, one GPU each, graded as a whole; and its tables.

A judge needs no GPU; its ledger lies in `ledgers/`, outlives every rerun and is never paid twice.
"""


rule draw:
    input:
        lambda wc: f"{checkpoint_folder(wc.model, wc.run)}/manifest.json",
        data=lambda wc: manifests(benchmark_roles(wc.benchmark, "draw").values()),
    output:
        f"{SAMPLES}/{{shard}}/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-{{shard}}-samples.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-{{shard}}-samples.tsv"
    wildcard_constraints:
        benchmark=one_of(PAPER),
        split="test",
    retries: 2
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=one_gpu,
        mem_mb=memory,
        runtime=asks("runtime_minutes"),
    params:
        section=lambda wc: section(of_drawing(wc)),
        code=lambda wc: code("draw", wc.model, wc.benchmark),
        model=subpath(input[0], parent=True),
        seed=lambda wc: wc.run.rsplit("-", 1)[1],
        shard=lambda wc: wc.shard.replace("-of-", "/"),
        sources=lambda wc: pairs("source", benchmark_roles(wc.benchmark, "draw")),
        work=f"work/{NAME}/{{model}}/{{run}}-{{benchmark}}-{{split}}-{{shard}}",
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca generate --section {params.section:q}"
        " --model {params.model:q} --seed {params.seed} --shard {params.shard} {params.sources:q}"
        " --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"


rule examine:
    input:
        f"{SAMPLES}/{{shard}}/manifest.json",
        data=lambda wc: manifests(benchmark_roles(wc.benchmark, "examine").values()),
    output:
        f"{EVIDENCE}/{{shard}}/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-{{shard}}-evidence.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-{{shard}}-evidence.tsv"
    wildcard_constraints:
        benchmark=one_of(name for name in PAPER if EXAMINED_BY[name] != "none"),
    retries: 2
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=lambda wc: min(one_gpu(wc), sees_here(wc.benchmark)),
        mem_mb=memory,
        runtime=1440,
    params:
        section=lambda wc: section(of_kind(wc.benchmark, (*EXAMINED, "judge"))),
        code=lambda wc: code(stage_of_evidence(wc.benchmark), None, wc.benchmark),
        samples=subpath(input[0], parent=True),
        sources=lambda wc: pairs("source", benchmark_roles(wc.benchmark, "examine")),
        ledger=f"ledgers/{NAME}/{{model}}/{{run}}-{{benchmark}}-{{shard}}.jsonl",
        work=f"work/{NAME}/{{model}}/{{run}}-{{benchmark}}-{{split}}-{{shard}}-evidence",
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca examine --section {params.section:q}"
        " --samples {params.samples:q} {params.sources:q} --ledger {params.ledger:q}"
        " --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"


rule grade:
    input:
        samples=lambda wc: shard_manifests("samples", wc),
        evidence=lambda wc: shard_manifests("evidence", wc),
        data=lambda wc: manifests(benchmark_roles(wc.benchmark, "grade").values()),
    output:
        f"{SCORES}/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-grade.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-grade.tsv"
    wildcard_constraints:
        benchmark=one_of(PAPER),
        split="test",
    retries: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        section=lambda wc: section(of_kind(wc.benchmark, GRADED)),
        code=lambda wc: code("grade", None, wc.benchmark),
        samples=lambda wc, input: folders_of(input.samples),
        evidence=lambda wc, input: folders_of(input.evidence),
        sources=lambda wc: pairs("source", benchmark_roles(wc.benchmark, "grade")),
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca score --section {params.section:q} {params.sources:q}"
        " --samples {params.samples:q} --evidence {params.evidence:q} --out {params.out:q}"
        " 2>&1 | tee {log:q}"


rule paper_tables:
    input:
        score_manifests("test"),
    output:
        f"{RESULTS}/paper/manifest.json",
    log:
        f"logs/{NAME}/paper.log",
    benchmark:
        f"benchmarks/{NAME}/paper.tsv"
    retries: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code("paper"),
        experiment=NAME,
        # another expectation, other tables
        expect=lambda wc: [str(one) for one in EXPERIMENT.expect],
        results=subpath(output[0], ancestor=2),
        out=subpath(output[0], parent=True),
    shell:
        "python3 -m reca paper --results {params.results:q} --experiment {params.experiment:q}"
        " --out {params.out:q} 2>&1 | tee {log:q}"
