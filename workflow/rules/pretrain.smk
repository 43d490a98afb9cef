"""A laptop base model made from nothing: its frozen parts, then the rest of it in phases.

Or one that goes on from a whole model, which then is in place of the parts.
"""

from dataclasses import asdict

from reca.config.validate import pretrained_roles

START = records_in([EXPERIMENT.pretrain.start])
READ = pretrained_roles(EXPERIMENT.pretrain)
PARTS = f"{RESULTS}/{{model}}/pretrain/{{part}}"


rule pretrain_part:
    input:
        lambda wc: data_manifests(["reconstruct"]),
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
        ENVIRONMENT
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
        data=lambda wc: pairs("data", data_folders(["reconstruct"])),
        seed=EXPERIMENT.pretrain.seed,
        work=f"work/{NAME}/{{model}}/pretrain-{{part}}",
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca pretrain {wildcards.part:q} --section {params.section:q}"
        " {params.data:q} --seed {params.seed} --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"


rule pretrain_base:
    input:
        expand(
            f"{PARTS}/manifest.json",
            part=EXPERIMENT.pretrain.parts,
            allow_missing=True,
        ),
        lambda wc: data_manifests(READ),
        lambda wc: listed(START),
    output:
        f"{RESULTS}/{{model}}/base/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/base.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/base.tsv"
    retries: 3
    conda:
        ENVIRONMENT
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
                **(
                    {"binding": EXPERIMENT.pretrain.binding}
                    if EXPERIMENT.pretrain.binding
                    else {}
                ),
            )
        ),
        code=lambda wc: code("pretrain", wc.model),
        data=lambda wc: pairs("data", data_folders(READ)),
        seed=EXPERIMENT.pretrain.seed,
        parts=lambda wc: pairs(
            "input",
            {
                part: f"{RESULTS}/{wc.model}/pretrain/{part}"
                for part in EXPERIMENT.pretrain.parts
            },
        ),
        records=lambda wc: unlisted(START),
        start=lambda wc: [f"--start={os.path.dirname(path)}" for path in START],
        work=f"work/{NAME}/{{model}}/pretrain-base",
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca pretrain base --section {params.section:q} {params.data:q}"
        " {params.parts:q} {params.start:q} --seed {params.seed}"
        " --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"
