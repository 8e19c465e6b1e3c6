# Raw data → dataset archive, and what is made from a dataset alone.


rule prepare:
    message:
        "Prepare {wildcards.dataset}"
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
        "edm prepare {output:q} --dataset {wildcards.dataset:q} --expect {params.expect} > {log:q} 2>&1"


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


rule reference:
    message:
        "Reference statistics of {wildcards.dataset} ({wildcards.features})"
    input:
        data="data/{dataset}.zip",
        weights=local_weights,
    output:
        "runs/references/{dataset}/{features}.npz",
    params:
        weights=weights_option,
    log:
        "runs/logs/reference-{dataset}-{features}.log",
    resources:
        mem_mb=3000,
        runtime=60,
    shell:
        "edm fid-ref {input.data:q} {output:q} --features {wildcards.features:q} {params.weights}"
        " --threads {threads} > {log:q} 2>&1"
