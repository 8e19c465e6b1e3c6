# Distances, losses per level and samples → figures.
for name in EXPERIMENTS:

    rule:
        name:
            f"figures_{name}"
        message:
            "Figures of {params.experiment}"
        input:
            distances_of(name),
            f"data/{EXPERIMENTS[name].dataset}.zip",
            [f"runs/{name}/{model}/levels.json" for model in EXPERIMENTS[name].models],
        output:
            figures_of(name),
        params:
            experiment=name,
            spec=canonical_json(EXPERIMENTS[name].results_spec()),
            expect=digest(EXPERIMENTS[name].results_spec()),
        log:
            f"runs/{name}/figures.log",
        resources:
            mem_mb=1000,
            runtime=15,
        shell:
            "edm figures {params.experiment:q} --expect {params.expect} > {log:q} 2>&1"
