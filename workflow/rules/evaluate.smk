SAMPLES = f"{RESULTS}/{{model}}/{{run}}/{{benchmark}}/{{split}}/samples"
EVIDENCE = f"{RESULTS}/{{model}}/{{run}}/{{benchmark}}/{{split}}/evidence"
SCORES = f"{RESULTS}/{{model}}/{{run}}/{{benchmark}}/{{split}}/scores"


rule generate:
    input:
        lambda wc: f"{checkpoint_folder(wc.model, wc.run)}/manifest.json",
        benchmark=lambda wc: manifests(benchmark_folders(wc.benchmark)),
        guidance=lambda wc: manifests(guidance_folders(wc.model, wc.split)),
    output:
        f"{SAMPLES}/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-samples.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-samples.tsv"
    wildcard_constraints:
        benchmark=one_of(LAPTOP),
    retries: 2
    group:
        "evaluation"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=one_gpu,
        mem_mb=memory,
        runtime=asks("runtime_minutes"),
    params:
        section=lambda wc: section(of_samples(wc)),
        code=lambda wc: code("generate", wc.model, wc.benchmark),
        model=subpath(input[0], parent=True),
        seed=lambda wc: wc.run.rsplit("-", 1)[1],
        guidance=lambda wc: [
            f"--guidance={folder}/guidance.json"
            for folder in guidance_folders(wc.model, wc.split)
        ],
        work=f"work/{NAME}/{{model}}/{{run}}-{{benchmark}}-{{split}}",
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca generate --section {params.section:q}"
        " --model {params.model:q} --seed {params.seed} --split {wildcards.split}"
        " {params.guidance:q} --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"


rule score:
    input:
        f"{SAMPLES}/manifest.json",
    output:
        f"{SCORES}/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-scores.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/{{run}}/{{benchmark}}-{{split}}-scores.tsv"
    wildcard_constraints:
        benchmark=one_of(LAPTOP),
    retries: 1
    group:
        "evaluation"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=memory,
        runtime=60,
    params:
        section=lambda wc: section(of_benchmark(wc.benchmark, wc.split)),
        code=lambda wc: code("score", None, wc.benchmark),
        samples=subpath(input[0], parent=True),
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca score --section {params.section:q}"
        " --samples {params.samples:q} --out {params.out:q} 2>&1 | tee {log:q}"


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
        scores=lambda wc, input: [os.path.dirname(path) for path in input],
        out=f"{RESULTS}/{{model}}/guidance/guidance.json",
    shell:
        "python3 -m reca choose --scores {params.scores:q} --out {params.out:q} 2>&1 | tee {log:q}"
