# Model and dataset → bits per dimension, in one job or in several that share the images (`shards` in params.yaml).


rule likelihood_shard:
    message:
        "Bits of {wildcards.experiment} {wildcards.model}: {wildcards.likelihood}, {wildcards.part}"
    input:
        unpack(inputs_of("likelihood_shard", "experiment", "model", "likelihood", "part")),
    output:
        part=temp("runs/{experiment}/{model}/likelihoods/{likelihood}.shards/{part}.json"),
        sidecar=temp("runs/{experiment}/{model}/likelihoods/{likelihood}.shards/{part}.json.json"),
    params:
        shard=lambda w: w.part.replace("-of-", "/"),
        step=step("likelihood_shard", "experiment", "model", "likelihood", "part"),
        expect=expect("likelihood_shard", "experiment", "model", "likelihood", "part"),
    log:
        "runs/{experiment}/{model}/likelihoods/{likelihood}.shards/{part}.log",
    wildcard_constraints:
        part=r"\d+-of-\d+",
    resources:
        **SAMPLING,
        mem_mb=3000,
        runtime=480,
    shell:
        launched(
            "likelihood {input.model:q} {input.dataset:q} {output.part:q} --experiment {wildcards.experiment:q}"
            " --model {wildcards.model:q} --likelihood {wildcards.likelihood:q} --expect {params.expect}"
            " --shard {params.shard} >> {log:q} 2>&1"
        )


rule likelihood:
    message:
        "Bits of {wildcards.experiment} {wildcards.model}: {wildcards.likelihood}"
    input:
        unpack(inputs_of("likelihood", "experiment", "model", "likelihood")),
    output:
        "results/{experiment}/likelihoods/{model}/{likelihood}.json",
    params:
        step=step("likelihood", "experiment", "model", "likelihood"),
        expect=expect("likelihood", "experiment", "model", "likelihood"),
        parts=known(lambda w, input: ["--parts", *input.parts] if "parts" in input.keys() else []),
    log:
        "runs/{experiment}/{model}/likelihoods/{likelihood}.log",
    resources:
        **MERGING,
        mem_mb=3000,
        runtime=480,
    shell:
        launched(
            "likelihood {input.model:q} {input.dataset:q} {output:q} --experiment {wildcards.experiment:q}"
            " --model {wildcards.model:q} --likelihood {wildcards.likelihood:q} --expect {params.expect}"
            " --journal runs/{wildcards.experiment:q}/{wildcards.model:q}/likelihoods/{wildcards.likelihood:q}.journal.jsonl"
            " {params.parts:q} >> {log:q} 2>&1"
        )
