# A laptop base model made from nothing: its frozen parts, then the rest of it in phases. Or one that goes on from a
# whole model, which then stands in place of the parts.
START = EXPERIMENT.pretrain.start
PARTS = f"{RESULTS}/{{model}}/pretrain/{{part}}"


rule pretrain_part:
    input:
        data_manifests(),
    output:
        f"{PARTS}/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/pretrain-{{part}}.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/pretrain-{{part}}.tsv"
    wildcard_constraints:
        part=one_of(EXPERIMENT.pretrain.parts),
    retries: 3
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=one_gpu,
        mem_mb=memory,
        runtime=asks("runtime_minutes"),
    params:
        section=lambda wc: section(
            of_pretraining(wc.model, fit=asdict(EXPERIMENT.pretrain.parts[wc.part]))
        ),
        code=lambda wc: code("pretrain", wc.model),
        data=pairs("data", data_folders()),
        seed=EXPERIMENT.pretrain.seed,
        work=f"work/{NAME}/{{model}}/pretrain-{{part}}",
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} reca pretrain {wildcards.part} --section {params.section:q}"
        " {params.data} --seed {params.seed} --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"


rule pretrain_base:
    input:
        expand(
            f"{PARTS}/manifest.json",
            part=EXPERIMENT.pretrain.parts,
            allow_missing=True,
        ),
        data_manifests(),
        [f"{START}/manifest.json"] if START else [],
    output:
        f"{RESULTS}/{{model}}/base/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/base.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/base.tsv"
    retries: 3
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=one_gpu,
        mem_mb=memory,
        runtime=asks("runtime_minutes"),
    params:
        section=lambda wc: section(
            of_pretraining(
                wc.model,
                phases={
                    n: asdict(phase) for n, phase in EXPERIMENT.pretrain.phases.items()
                },
            )
        ),
        code=lambda wc: code("pretrain", wc.model),
        data=pairs("data", data_folders()),
        seed=EXPERIMENT.pretrain.seed,
        parts=lambda wc: pairs(
            "input",
            {
                part: f"{RESULTS}/{wc.model}/pretrain/{part}"
                for part in EXPERIMENT.pretrain.parts
            },
        ),
        start=f"--start {START}" if START else "",
        work=f"work/{NAME}/{{model}}/pretrain-base",
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} reca pretrain base --section {params.section:q} {params.data}"
        " {params.parts} {params.start} --seed {params.seed}"
        " --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"
