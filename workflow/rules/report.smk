rule report:
    input:
        score_manifests("test"),
        guidance_manifests(),
        checkpoint_manifests(),
    output:
        report(
            f"{RESULTS}/report/index.html",
            caption="../report/page.rst",
            category="Results",
            labels={"experiment": NAME, "what": "report"},
        ),
        report(
            f"{RESULTS}/report/outcomes.json",
            caption="../report/outcomes.rst",
            category="Results",
            labels={"experiment": NAME, "what": "numbers"},
        ),
        f"{RESULTS}/report/manifest.json",
    log:
        f"logs/{NAME}/report.log",
    benchmark:
        f"benchmarks/{NAME}/report.tsv"
    retries: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        section=lambda wc: section(of_report()),
        code=code("report"),
        name=NAME,
        results=subpath(output[0], ancestor=2),
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca report --experiment {params.name:q} --results {params.results:q}"
        " --out {params.out:q} 2>&1 | tee {log:q}"


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
