# Images → Fréchet distances from the dataset: FID in Inception-v3 features, FD in others.


rule fid:
    message:
        "Distances of {wildcards.experiment} {wildcards.model}: {wildcards.grid}"
    input:
        samples="runs/{experiment}/{model}/samples/{grid}.safetensors",
        reference=lambda w: reference_of(EXPERIMENTS[w.experiment]),
        weights=lambda w: weights_of(EXPERIMENTS[w.experiment]),
    output:
        "results/{experiment}/distances/{model}/{grid}.json",
    params:
        features=lambda w: EXPERIMENTS[w.experiment].features,
        weights=weights_option,
        journal=lambda w: f"runs/{w.experiment}/{w.model}/distances/{w.grid}.journal.jsonl",
    log:
        "runs/{experiment}/{model}/distances/{grid}.log",
    resources:
        mem_mb=3000,
        runtime=60,
    shell:
        "edm fid {input.samples:q} --ref {input.reference:q} --features {params.features:q} {params.weights:q}"
        " --output {output:q} --threads {threads}"
        " --journal {params.journal:q}"
        " > {log:q} 2>&1"
