# Model → distances from the dataset: FID in Inception-v3 features, FD in others. A job evaluates images as it samples
# them and does not store them. On a laptop one process evaluates a whole grid and starts only once; on a cluster each
# point and each repeat is a separate job (`one_job_per` in params.yaml), or several jobs share its images (`shards`).


EVALUATION = measuring("evaluate", "experiment", "model", "evaluation")  # of its shards, too


rule shard:
    message:
        "Distances of {wildcards.experiment} {wildcards.model}: {wildcards.evaluation}, {wildcards.part}"
    input:
        unpack(inputs_of("shard", "experiment", "model", "evaluation", "part")),
    output:
        part=temp("runs/{experiment}/{model}/distances/{evaluation}.shards/{part}.safetensors"),
        sidecar=temp("runs/{experiment}/{model}/distances/{evaluation}.shards/{part}.safetensors.json"),
    params:
        options=EVALUATION,
        shard=lambda w: w.part.replace("-of-", "/"),
        step=step("shard", "experiment", "model", "evaluation", "part"),
        expect=expect("shard", "experiment", "model", "evaluation", "part"),
    log:
        "runs/{experiment}/{model}/distances/{evaluation}.shards/{part}.log",
    wildcard_constraints:
        part=r"\d+-of-\d+",
    resources:
        **SAMPLING,
        mem_mb=3000,
        runtime=480,
    shell:
        launched(
            "evaluate {input.model:q} {output.part:q} --experiment {wildcards.experiment:q} --model {wildcards.model:q}"
            " --evaluation {wildcards.evaluation:q} {params.options:q} --expect {params.expect}"
            " --shard {params.shard} >> {log:q} 2>&1"
        )


rule evaluate:
    message:
        "Distances of {wildcards.experiment} {wildcards.model}: {wildcards.evaluation}"
    input:
        unpack(inputs_of("evaluate", "experiment", "model", "evaluation")),
    output:
        "results/{experiment}/distances/{model}/{evaluation}.json",
    params:
        options=EVALUATION,
        step=step("evaluate", "experiment", "model", "evaluation"),
        expect=expect("evaluate", "experiment", "model", "evaluation"),
        parts=known(lambda w, input: ["--parts", *input.parts] if "parts" in input.keys() else []),
    log:
        "runs/{experiment}/{model}/distances/{evaluation}.log",
    resources:
        **EVALUATING,
        mem_mb=3000,
        runtime=480,
    shell:
        launched(
            "evaluate {input.model:q} {output:q} --experiment {wildcards.experiment:q} --model {wildcards.model:q}"
            " --evaluation {wildcards.evaluation:q} {params.options:q} --expect {params.expect}"
            " --journal runs/{wildcards.experiment:q}/{wildcards.model:q}/distances/{wildcards.evaluation:q}.journal.jsonl"
            " {params.parts:q} >> {log:q} 2>&1"
        )


# One job for all evaluations of a search: each outcome decides the next one, and may decide other jobs' settings.
rule search:
    message:
        "Search {wildcards.experiment} {wildcards.model}: {wildcards.search}"
    input:
        unpack(inputs_of("search", "experiment", "model", "search")),
    output:
        "results/{experiment}/searches/{model}/{search}.json",
    params:
        options=measuring("search", "experiment", "model", "search"),
        step=step("search", "experiment", "model", "search"),
        expect=expect("search", "experiment", "model", "search"),
        beside=lambda w: f"runs/{w.experiment}/{w.model}/searches/{w.search}",
    log:
        "runs/{experiment}/{model}/searches/{search}.log",
    resources:
        **MEASURING,
        mem_mb=3000,
        runtime=2880,
    shell:
        launched(
            "search {input.model:q} {output:q} --experiment {wildcards.experiment:q} --model {wildcards.model:q}"
            " --search {wildcards.search:q} {params.options:q} --expect {params.expect}"
            " --journal {params.beside:q}.journal.jsonl --history {params.beside:q}.history.jsonl"
            " >> {log:q} 2>&1"
        )
