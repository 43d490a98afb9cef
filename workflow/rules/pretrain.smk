# The laptop's base model made from nothing: an image tokenizer, a reader, then the language model.
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
        part="tokenizer|reader",
    retries: 3
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=one_gpu,
        mem_mb=memory,
        runtime=asks("runtime_minutes"),
    params:
        section=lambda wc: section(of_pretraining(wc.model, fit=wc.part)),
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
        tokenizer=f"{RESULTS}/{{model}}/pretrain/tokenizer/manifest.json",
        reader=f"{RESULTS}/{{model}}/pretrain/reader/manifest.json",
        data=data_manifests(),
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
        section=lambda wc: section(of_pretraining(wc.model, phases="phases")),
        code=lambda wc: code("pretrain", wc.model),
        data=pairs("data", data_folders()),
        seed=EXPERIMENT.pretrain.seed,
        tokenizer=subpath(input.tokenizer, parent=True),
        reader=subpath(input.reader, parent=True),
        work=f"work/{NAME}/{{model}}/pretrain-base",
        out=subpath(output[0], parent=True),
    shell:
        "OMP_NUM_THREADS={threads} reca pretrain base --section {params.section:q} {params.data}"
        " --input tokenizer={params.tokenizer:q} --input reader={params.reader:q} --seed {params.seed}"
        " --work {params.work:q} --out {params.out:q} 2>&1 | tee {log:q}"
