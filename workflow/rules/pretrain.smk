"""A laptop base model made from nothing: its frozen parts, then the rest of it in phases.

Or one that goes on from a whole model, which then is in place of the parts.
"""

from dataclasses import asdict

from reca.config.validate import pretrained_roles

READ = pretrained_roles(EXPERIMENT.pretrain)
PARTS = f"{RESULTS}/{{model}}/pretrain{{place}}/{{part}}"


def start_of(place):
    """The record of the model to go on from, if any."""
    start = EXPERIMENT.pretrain.start
    return records_in([start and start.replace(SEED, str(seed_of(place)))])


def seed_of(place):
    """Base k is made from seed k; the one base from the seed of its own."""
    return int(place.rpartition("-")[2]) if place else EXPERIMENT.pretrain.seed


rule pretrain_part:
    input:
        lambda wc: data_manifests(["reconstruct"]),
    output:
        f"{PARTS}/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/pretrain{{place}}-{{part}}.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/pretrain{{place}}-{{part}}.tsv"
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
        seed=lambda wc: seed_of(wc.place),
        work=f"work/{NAME}/{{model}}/pretrain{{place}}-{{part}}",
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
        lambda wc: listed(start_of(wc.place)),
    output:
        f"{RESULTS}/{{model}}/base{{place}}/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/base{{place}}.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/base{{place}}.tsv"
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
                **options_of_pretraining(),
            )
        ),
        code=lambda wc: code("pretrain", wc.model),
        data=lambda wc: pairs("data", data_folders(READ)),
        seed=lambda wc: seed_of(wc.place),
        parts=lambda wc: pairs(
            "input",
            {
                part: f"{RESULTS}/{wc.model}/pretrain{wc.place}/{part}"
                for part in EXPERIMENT.pretrain.parts
            },
        ),
        records=lambda wc: unlisted(start_of(wc.place)),
        start=lambda wc: [
            f"--start={os.path.dirname(path)}" for path in start_of(wc.place)
        ],
        work=f"work/{NAME}/{{model}}/pretrain{{place}}-base",
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca pretrain base --section {params.section:q} {params.data:q}"
        " {params.parts:q} {params.start:q} --seed {params.seed}"
        " --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"
