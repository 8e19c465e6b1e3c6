# Raw data → dataset archive, and what is made from a dataset alone.


# Only what is not there is fetched: a file that you put in its place is yours, and no rule replaces it.
for path in CHAIN.absent_downloads():

    rule:
        name:
            re.sub(r"\W", "_", path)
        message:
            "Download {output}"
        output:
            path,
        log:
            f"runs/logs/{path.replace('/', '-')}.log",
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
            re.sub(r"\W", "_", f"made_up_{dataset}")
        message:
            "Make up the source of {params.dataset}"
        output:
            path if os.path.splitext(path)[1] else directory(path),
        params:
            dataset=dataset,
            expect=digest(PARAMS.dataset(dataset)),
        log:
            f"runs/logs/made-up-{dataset}.log",
        resources:
            mem_mb=500,
            runtime=15,
        shell:
            "edm made-up {output:q} --dataset {params.dataset:q} --expect {params.expect} > {log:q} 2>&1"


rule prepare:
    message:
        "Prepare {wildcards.dataset}"
    input:
        inputs(CHAIN.raw_inputs, "dataset"),
    output:
        "data/{dataset}.zip",
    params:
        spec=lambda w: canonical_json(PARAMS.dataset(w.dataset)),
        expect=lambda w: digest(PARAMS.dataset(w.dataset)),
    log:
        "runs/logs/prepare-{dataset}.log",
    resources:
        mem_mb=1000,
        runtime=60,
        cpus_per_task=1,
    shell:
        "edm prepare {output:q} --dataset {wildcards.dataset:q} --expect {params.expect}"
        " --workers {resources.cpus_per_task} > {log:q} 2>&1"


rule features:
    message:
        "Train the feature classifier of {wildcards.dataset}"
    input:
        "data/{dataset}.zip",
    output:
        "data/features/{dataset}-classifier.safetensors",
    log:
        "runs/logs/features-{dataset}.log",
    resources:
        mem_mb=1500,
        runtime=30,
    shell:
        "edm features {input:q} {output:q} --threads {threads} > {log:q} 2>&1"


def reference(dataset, statistics):
    return f"data/references/{dataset}/{statistics}.npz"


def reference_options(wildcards, input):
    """How statistics are computed: the experiments that use a file agree in that."""
    experiment, features = CHAIN.references[reference(wildcards.dataset, wildcards.statistics)]
    keep = ["--keep-features", "50000"] if files.keeps_features(experiment, features) else []
    return ["--features", features, *(["--weights", *input[1:]] if len(input) > 1 else []), *keep]


rule reference:
    message:
        "Reference statistics of {wildcards.dataset} ({wildcards.statistics})"
    input:
        inputs(lambda dataset, statistics: CHAIN.reference_inputs(reference(dataset, statistics)), "dataset", "statistics"),
    output:
        "data/references/{dataset}/{statistics}.npz",
    params:
        options=reference_options,
    log:
        "runs/logs/reference-{dataset}-{statistics}.log",
    resources:
        mem_mb=3000,
        runtime=60,
        **machine(lambda e: e.sampling.gpus),
    shell:
        LAUNCH + " fid-ref {input[0]:q} {output:q} {params.options:q} >> {log:q} 2>&1"
