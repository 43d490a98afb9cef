rule fetch:
    output:
        f"{DATA}/{{source}}/manifest.json",
    log:
        "logs/fetch/{source}.log",
    benchmark:
        "benchmarks/fetch/{source}.tsv"
    wildcard_constraints:
        source=one_of(SOURCES),
    retries: 3
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=1440,
    params:
        section=lambda wc: section(pins()[wc.source]),
        # Where bytes come from is not part of what they are. Snakemake compares no parameter that depends on the output,
        # so another mirror repeats no download.
        options=lambda wc, output: fetch_options(),
        out=subpath(output[0], parent=True),
    shell:
        "python3 -m reca fetch {wildcards.source:q} --out {params.out:q} {params.options:q}"
        " 2>&1 | tee {log:q}"


rule render:
    output:
        "data/{world}/manifest.json",
    log:
        "logs/render/{world}.log",
    benchmark:
        "benchmarks/render/{world}.tsv"
    wildcard_constraints:
        world=one_of(Path(folder).name for folder in WORLDS),
    retries: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        section=lambda wc: section(asdict(WORLDS[f"data/{wc.world}"].world)),
        code=code("render"),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca render --section {params.section:q}"
        " --out data/{wildcards.world:q} 2>&1 | tee {log:q}"
