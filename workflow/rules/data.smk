# Raw data → dataset archive, and what is made from a dataset alone.


rule prepare:
    message:
        "Prepare {wildcards.dataset}"
    input:
        raw_data,
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
    shell:
        "edm prepare {output:q} --dataset {wildcards.dataset:q} --expect {params.expect}"
        " --workers {threads} > {log:q} 2>&1"


rule features:
    message:
        "Train the feature classifier of {wildcards.dataset}"
    input:
        "data/{dataset}.zip",
    output:
        "runs/features/{dataset}-classifier.safetensors",
    log:
        "runs/logs/features-{dataset}.log",
    resources:
        mem_mb=1500,
        runtime=30,
    shell:
        "edm features {input:q} {output:q} --threads {threads} > {log:q} 2>&1"


# One rule per file: what a reference is made from is not in its name.
for path, experiment in REFERENCES.items():

    rule:
        name:
            re.sub(r"\W", "_", f"reference_{os.path.splitext(path)[0].removeprefix('runs/references/')}")
        message:
            f"Reference statistics of {experiment.dataset} ({experiment.features})"
        input:
            data=f"data/{experiment.dataset}.zip",
            weights=weights_of(experiment),
        output:
            path,
        params:
            features=experiment.features,
            weights=weights_option,
        log:
            path.replace(".npz", ".log"),
        resources:
            mem_mb=3000,
            runtime=60,
        shell:
            "edm fid-ref {input.data:q} {output:q} --features {params.features:q} {params.weights:q}"
            " --threads {threads} > {log:q} 2>&1"
