rule cache:
    input:
        f"{RESULTS}/{{model}}/base{{place}}/manifest.json",
        lambda wc: manifests(read_with(caches_of(wc.model)[wc.use])),
    output:
        f"{RESULTS}/{{model}}/cache{{place}}/{{use}}/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/cache{{place}}-{{use}}.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/cache{{place}}-{{use}}.tsv"
    priority: EARLIEST
    retries: 1
    conda:
        ENVIRONMENT
    threads: threads_of_one_gpu
    resources:
        gpu=one_gpu,
        cpus_per_task=threads_of_one_gpu,
        mem_mb=memory_of_one_gpu,
        runtime=asks("runtime_minutes"),
    params:
        section=lambda wc: section(of_cache(wc)),
        code=lambda wc: code("cache", wc.model),
        model=subpath(input[0], parent=True),
        data=lambda wc: data_folder(caches_of(wc.model)[wc.use]),
        companions=lambda wc: pairs(
            "companion", companions_of(caches_of(wc.model)[wc.use])
        ),
        contents=lambda wc: contents(read_with(caches_of(wc.model)[wc.use])),
        work=f"work/{NAME}/{{model}}/cache{{place}}-{{use}}",
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} python3 -m reca cache --section {params.section:q} --model {params.model:q}"
        " --data={params.data:q} {params.companions:q} --use {wildcards.use} --work {params.work:q} --out {params.out:q}"
        " 2>&1 | tee {log:q}"


rule align:
    input:
        lambda wc: f"{base_folder(wc.model, wc.seed)}/manifest.json",
        lambda wc: data_manifests(roles_of(wc.model).values()),
        lambda wc: records_in(cache_folders(wc.model, wc.seed).values()),
        lambda wc: listed(prompts_of(wc.model, wc.arm)),
    output:
        f"{RESULTS}/{{model}}/{{arm}}/seed-{{seed}}/manifest.json",
    log:
        f"logs/{NAME}/{{model}}/{{arm}}-{{seed}}.log",
    benchmark:
        f"benchmarks/{NAME}/{{model}}/{{arm}}-{{seed}}.tsv"
    wildcard_constraints:
        model=one_of(m for m in MODELS if m not in MULTI_NODE),
    priority: EARLY
    # A lost node or a preempted job goes on at its last checkpoint, which lies in the work folder.
    retries: 3
    conda:
        ENVIRONMENT
    threads: lambda wc: EXPERIMENT.models[wc.model].resources.threads
    resources:
        gpu=asks("gpus"),
        nodes=1,
        cpus_per_task=asks("threads"),
        mem_mb=memory,
        runtime=asks("runtime_minutes"),
    params:
        section=lambda wc: section(
            {**of_model(wc.model, "align"), **of_roles(roles_of(wc.model))}
        ),
        code=lambda wc: code("align", wc.model),
        start=lambda wc: launcher(wc.model),
        model=subpath(input[0], parent=True),
        data=lambda wc: pairs(
            "data",
            {role: data_folder(name) for role, name in roles_of(wc.model).items()},
        ),
        cache=lambda wc: pairs("cache", cache_folders(wc.model, wc.seed)),
        contents=lambda wc: contents(map(data_folder, roles_of(wc.model).values())),
        records=lambda wc: unlisted(prompts_of(wc.model, wc.arm)),
        work=f"work/{NAME}/{{model}}/{{arm}}-{{seed}}",
        out=subpath(output[0], parent=True),
    shell:
        "export OMP_NUM_THREADS={threads}; {params.start} align --section {params.section:q}"
        " --model {params.model:q} {params.data:q} {params.cache:q} --arm {wildcards.arm} --seed {wildcards.seed}"
        " --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"


# Several nodes: the Slurm plugin leaves the `srun` to the job, which starts one torchrun per node.
use rule align as align_nodes with:
    wildcard_constraints:
        model=one_of(MULTI_NODE),
    resources:
        mpi="srun",
        nodes=asks("nodes"),
        tasks=asks("nodes"),
        tasks_per_gpu=0,
        gres=lambda wc: f"gpu:{EXPERIMENT.models[wc.model].resources.gpus}",
        slurm_extra="'--ntasks-per-node=1'",
        cpus_per_task=asks("threads"),
        mem_mb=memory,
        runtime=asks("runtime_minutes"),
