rule base:
    input:
        lambda wc: manifests(weight_inputs(wc.model).values())
        + listed(shipped_weights(wc.model, wc.place)),
    output:
        f"{RESULTS}/{{model}}/base{{place}}/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/base{{place}}.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/base{{place}}.tsv"
    priority: EARLIEST
    retries: 1
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=memory_of_one_gpu,
        runtime=240,
    params:
        section=lambda wc: section(of_base(wc.model, wc.place)),
        code=lambda wc: code("base", wc.model),
        records=lambda wc: unlisted(shipped_weights(wc.model, wc.place)),
        out=subpath(output[0], parent=True),
        inputs=lambda wc: pairs("input", weight_inputs(wc.model)),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca base --section {params.section:q} {params.inputs:q}"
        " --out {params.out:q} 2>&1 | tee {log:q}"
