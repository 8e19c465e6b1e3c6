# Images → Fréchet distances from the dataset: FID in Inception-v3 features, FD in others.


rule fid:
    message:
        "Distances of {wildcards.experiment} {wildcards.model}: {wildcards.grid}"
    input:
        samples="runs/{experiment}/{model}/samples/{grid}.safetensors",
        reference=lambda w: (
            f"runs/references/{EXPERIMENTS[w.experiment].dataset}/{EXPERIMENTS[w.experiment].features}.npz"
        ),
        weights=weights_of,
    output:
        "results/{experiment}/distances/{model}/{grid}.json",
    params:
        features=lambda w: EXPERIMENTS[w.experiment].features,
        weights=weights_option,
    log:
        "runs/{experiment}/{model}/distances/{grid}.log",
    resources:
        mem_mb=3000,
        runtime=60,
    shell:
        "edm fid {input.samples:q} --ref {input.reference:q} --features {params.features:q} {params.weights}"
        " --output {output:q} --threads {threads}"
        " --journal runs/{wildcards.experiment}/{wildcards.model}/distances/{wildcards.grid}.journal.jsonl"
        " > {log:q} 2>&1"
