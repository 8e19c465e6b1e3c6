# Trained model × grid of sampler settings → images. One process draws a whole grid: it pays its start-up once.


rule sample:
    message:
        "Sample {wildcards.experiment} {wildcards.model}: {wildcards.grid}"
    input:
        "runs/{experiment}/{model}/model.safetensors",
    output:
        "runs/{experiment}/{model}/samples/{grid}.safetensors",
    params:
        spec=lambda w: canonical_json(EXPERIMENTS[w.experiment].sampling_spec(w.model, w.grid)),
        expect=lambda w: digest(EXPERIMENTS[w.experiment].sampling_spec(w.model, w.grid)),
    log:
        "runs/{experiment}/{model}/samples/{grid}.log",
    resources:
        mem_mb=1500,
        runtime=120,
    shell:
        "edm sample {input:q} {output:q} --experiment {wildcards.experiment:q} --model {wildcards.model:q}"
        " --grid {wildcards.grid:q} --expect {params.expect} --threads {threads} > {log:q} 2>&1"
