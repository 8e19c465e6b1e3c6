# Dataset archive → trained model; published file → the same; snapshots → an average of them, or the best of both.


# An interrupted training run resumes from its last state. The state is not an output, because Snakemake removes the
# outputs of a failed job. Status 75 (stopped on request) counts as a failure here, and a retry resumes the run. The
# snapshots are no outputs either: their number follows from params.yaml, and `choose` counts them.
rule train:
    message:
        "Train {wildcards.trained}"
    input:
        unpack(inputs_of("train", "trained")),
    output:
        model="models/{trained}/model.safetensors",
        levels="models/{trained}/levels.json",
    params:
        names=trained_names,
        step=step("train", "trained"),
        expect=expect("train", "trained"),
        final=lambda w, output: os.path.dirname(output.model),
        out=lambda w: f"runs/{w.trained}",
    log:
        "runs/{trained}/train.log",
    priority: 10
    resources:
        **TRAINING,
        mem_mb=1500,
        runtime=240,
        state_every=lambda w: CHAIN.experiments[Path(w.trained).parts[0]].training.state_every,
    shell:
        launched(
            "train {params.names:q} --expect {params.expect} --data {input.dataset:q} --out {params.out:q}"
            " --final {params.final:q} --state-every {resources.state_every} >> {log:q} 2>&1"
        )


rule published:
    message:
        "Import {wildcards.pretrained}"
    input:
        unpack(inputs_of("published", "pretrained")),
    output:
        "models/{pretrained}/model.safetensors",
    params:
        name=lambda w: CHAIN.published_file(*Path(w.pretrained).parts),
        path=lambda w: CHAIN.pretrained(*Path(w.pretrained).parts)["path"],
        step=step("published", "pretrained"),
        expect=expect("published", "pretrained"),
    log:
        "runs/{pretrained}/import.log",
    resources:
        mem_mb=4000,
        runtime=30,
    shell:
        started("import {params.path:q} {output:q} --published {params.name:q} --expect {params.expect} > {log:q} 2>&1")


# One job for all snapshots: its outcome decides which snapshot is evaluated, but Snakemake must know all jobs before.
rule choose:
    message:
        "Choose the best snapshot of {wildcards.trained}"
    input:
        unpack(inputs_of("choose", "trained")),
    output:
        best="models/{trained}/best.safetensors",
        choice="models/{trained}/choice.json",
    wildcard_constraints:
        trained=TRAINED,
    params:
        names=trained_names,
        snapshots=lambda w, input: os.path.join("runs", *Path(str(input.model)).parts[1:-1], "snapshots"),
        options=measuring("choose", "trained"),
        step=step("choose", "trained"),
        expect=expect("choose", "trained"),
        beside=lambda w: f"runs/{w.trained}/choice",
    log:
        "runs/{trained}/choose.log",
    priority: 5
    resources:
        **MEASURING,
        mem_mb=3000,
        runtime=1440,
    shell:
        launched(
            "choose {params.snapshots:q} {output.best:q} {params.names:q} --expect {params.expect}"
            " --journal {params.beside:q}.journal.jsonl --history {params.beside:q}.history.jsonl"
            " {params.options:q} >> {log:q} 2>&1"
        )


# One job per width and time: Snakemake must know the files of a rule by their names.
rule average:
    message:
        "Average the snapshots of {wildcards.trained}, width {wildcards.width}"
    input:
        unpack(inputs_of("average", "trained", "width")),
    output:
        "models/{trained}/ema-{width}.safetensors",
    wildcard_constraints:
        trained=TRAINED,
        width=r"[0-9.e-]+(-at-[0-9.e-]+)?",
    params:
        names=trained_names,
        run=lambda w, input: os.path.join("runs", *Path(str(input.model)).parts[1:-1]),
        out=lambda w, output: os.path.dirname(str(output)),
        of=lambda w: f"--width {w.width}".replace("-at-", " --at ").split(),
        step=step("average", "trained", "width"),
        expect=expect("average", "trained", "width"),
    log:
        "runs/{trained}/ema-{width}.log",
    resources:
        mem_mb=3000,
        runtime=120,
    shell:
        started(
            "average {params.run:q} {params.of:q} --out {params.out:q} {params.names:q}"
            " --expect {params.expect} > {log:q} 2>&1"
        )
