# Raw data → dataset archive → feature classifier and reference statistics.


# Only missing files have a download rule: no rule replaces a file that you put at such a path. Names in params.yaml have
# no double hyphen, so no other rule has the name of these. The digest tells a/b and a-b apart; the end of the path keeps
# the name of the log short.
for path in CHAIN.absent_downloads() if PLANS else ():
    unique = f"download--{digest(path)[:8]}"

    rule:
        name:
            unique
        message:
            "Download {output}"
        output:
            path,
        log:
            f"runs/logs/{unique}-{'-'.join(Path(path).parts)[-50:]}.log",
        localrule: True
        resources:
            mem_mb=500,
            runtime=240,
        shell:
            "edm download {output:q} > {log:q} 2>&1"


for dataset in [name for name, raw in PARAMS.raw["datasets"].items() if raw.get("made_up")]:
    path = PARAMS.dataset(dataset)["path"]

    rule:
        name:
            f"made-up--{dataset}"
        message:
            "Create synthetic raw data of {params.dataset}"
        input:
            unpack(inputs_of("made_up", key=dataset)),
        output:
            path if os.path.splitext(path)[1] else directory(path),
        params:
            dataset=dataset,
            step=step("made_up", key=dataset),
            expect=expect("made_up", key=dataset),
        log:
            f"runs/logs/made-up-{dataset}.log",
        resources:
            mem_mb=500,
            runtime=15,
        shell:
            started("made-up {output:q} --dataset {params.dataset:q} --expect {params.expect} > {log:q} 2>&1")


rule prepare:
    message:
        "Prepare {wildcards.dataset}"
    input:
        unpack(inputs_of("prepare", "dataset")),
    output:
        "data/{dataset}.zip",
    params:
        step=step("prepare", "dataset"),
        expect=expect("prepare", "dataset"),
    log:
        "runs/logs/prepare-{dataset}.log",
    resources:
        mem_mb=1000,
        runtime=60,
        cpus_per_task=1,
    shell:
        started(
            "prepare {output:q} --dataset {wildcards.dataset:q} --expect {params.expect}"
            " --workers {resources.cpus_per_task} > {log:q} 2>&1"
        )


rule features:
    message:
        "Train the feature classifier of {wildcards.dataset}"
    input:
        unpack(inputs_of("features", "dataset")),
    output:
        "data/features/{dataset}-classifier.safetensors",
    params:
        step=step("features", "dataset"),
    log:
        "runs/logs/features-{dataset}.log",
    resources:
        mem_mb=1500,
        runtime=30,
    shell:
        started("features {input.dataset:q} {output:q} --threads {threads} > {log:q} 2>&1")


rule advise:
    message:
        "Derive settings from {wildcards.dataset}"
    input:
        unpack(inputs_of("advise", "dataset")),
    output:
        "data/references/{dataset}/advice.json",
    params:
        step=step("advise", "dataset"),
    log:
        "runs/logs/advise-{dataset}.log",
    resources:
        mem_mb=2000,
        runtime=60,
    shell:
        started("advise {input.dataset:q} --output {output:q} --threads {threads} > {log:q} 2>&1")


rule reference:
    message:
        "Reference statistics of {wildcards.dataset} ({wildcards.statistics})"
    input:
        unpack(inputs_of("reference", "dataset", "statistics")),
    output:
        "data/references/{dataset}/{statistics}.npz",
    params:
        step=step("reference", "dataset", "statistics"),
        options=reference_options,
    log:
        "runs/logs/reference-{dataset}-{statistics}.log",
    resources:
        **machine(lambda e: e.sampling.gpus),
        mem_mb=3000,
        runtime=60,
    shell:
        launched("fid-ref {input.dataset:q} {output:q} {params.options:q} >> {log:q} 2>&1")
