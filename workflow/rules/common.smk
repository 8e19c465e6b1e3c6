# Which files belong to which experiment, and what each step depends on.


wildcard_constraints:
    dataset="|".join(map(re.escape, PARAMS.raw["datasets"])),
    experiment="|".join(map(re.escape, EXPERIMENTS)),
    model="|".join(sorted({re.escape(model) for e in EXPERIMENTS.values() for model in e.models})),
    grid="|".join(sorted({re.escape(grid) for e in EXPERIMENTS.values() for grid in e.grids})),
    features="|".join(sorted({re.escape(e.features) for e in EXPERIMENTS.values()})),


CLASSIFIER = "digits-classifier"


def archive(wildcards):
    return f"data/{EXPERIMENTS[wildcards.experiment].dataset}.zip"


def weights(dataset, features, local):
    """The extractor's weights: trained here, a local file, or none (torch-fidelity's own, downloaded once)."""
    if features == CLASSIFIER:
        return [f"runs/features/{dataset}-classifier.safetensors"]
    return [local] if local else []


def weights_of(wildcards):
    experiment = EXPERIMENTS[wildcards.experiment]
    return weights(experiment.dataset, experiment.features, experiment.feature_weights)


def local_weights(wildcards):
    """Weights for reference statistics: the local file that any experiment with these features names."""
    named = {e.feature_weights for e in EXPERIMENTS.values() if e.features == wildcards.features} - {None}
    return weights(wildcards.dataset, wildcards.features, min(named, default=None))


def weights_option(wildcards, input):
    return f"--weights {input.weights[0]}" if input.weights else ""


def distances_of(name):
    return [f"results/{name}/distances/{model}/{grid}.json" for model, grid in EXPERIMENTS[name].evaluations()]


def tables_of(name):
    files = [f"results/{name}/tables/{table}{suffix}" for table in EXPERIMENTS[name].tables for suffix in (".md", ".csv")]
    return [*files, f"results/{name}/metrics.json"]


def figures_of(name):
    return [f"results/{name}/figures/{figure}{suffix}" for figure in EXPERIMENTS[name].figures for suffix in (".png", ".svg")]


def results_of(name):
    return [*tables_of(name), *figures_of(name), f"runs/{name}/tracking.json"]
