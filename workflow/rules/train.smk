# Dataset archive → trained model. An interrupted training continues from its last state, which is no output here:
# Snakemake removes the outputs of a job that fails.


rule train:
    message:
        "Train {wildcards.experiment} {wildcards.model}"
    input:
        archive,
    output:
        model="runs/{experiment}/{model}/model.safetensors",
        levels="runs/{experiment}/{model}/levels.json",
    params:
        spec=lambda w: canonical_json(EXPERIMENTS[w.experiment].training_spec(w.model)),
        expect=lambda w: digest(EXPERIMENTS[w.experiment].training_spec(w.model)),
        out=lambda w, output: os.path.dirname(output.model),
    log:
        "runs/{experiment}/{model}/train.log",
    priority: 10
    resources:
        mem_mb=1500,
        runtime=240,
    shell:
        "edm train --experiment {wildcards.experiment:q} --model {wildcards.model:q} --expect {params.expect}"
        " --data {input:q} --out {params.out:q} --threads {threads} > {log:q} 2>&1"
