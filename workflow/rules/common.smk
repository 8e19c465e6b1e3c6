# Which files belong to which experiment, and what each step depends on.


wildcard_constraints:
    dataset="|".join(map(re.escape, PARAMS.raw["datasets"])),
    experiment="|".join(map(re.escape, EXPERIMENTS)),
    model="|".join(sorted({re.escape(model) for e in EXPERIMENTS.values() for model in e.models})),
    grid="|".join(sorted({re.escape(grid) for e in EXPERIMENTS.values() for grid in e.grids})),


def raw_data(wildcards):
    path = PARAMS.dataset(wildcards.dataset)["path"]
    return [] if path is None else path


def archive(wildcards):
    return f"data/{EXPERIMENTS[wildcards.experiment].dataset}.zip"


def weights_of(experiment):
    """The extractor's weights: trained here, a local file, or none (torch-fidelity's own, downloaded once)."""
    if experiment.features == CLASSIFIER:
        return [f"runs/features/{experiment.dataset}-classifier.safetensors"]
    return [experiment.feature_weights] if experiment.feature_weights else []


def reference_of(experiment):
    """Reference statistics are shared by the experiments that measure one dataset with one extractor and its weights."""
    weights = f"-{digest(experiment.feature_weights)[:6]}" if experiment.feature_weights else ""
    return f"runs/references/{experiment.dataset}/{experiment.features}{weights}.npz"


# What each file of reference statistics is made from: any experiment that uses it tells.
REFERENCES = {reference_of(experiment): experiment for experiment in EXPERIMENTS.values()}


def weights_option(wildcards, input):
    return ["--weights", input.weights[0]] if input.weights else []


def distances_of(name):
    return [f"results/{name}/distances/{model}/{grid}.json" for model, grid in EXPERIMENTS[name].evaluations()]


def tables_of(name):
    files = [f"results/{name}/tables/{table}{suffix}" for table in EXPERIMENTS[name].tables for suffix in (".md", ".csv")]
    return [*files, f"results/{name}/metrics.json"]


def figures_of(name):
    return [f"results/{name}/figures/{figure}{suffix}" for figure in EXPERIMENTS[name].figures for suffix in (".png", ".svg")]


def results_of(name):
    return [*tables_of(name), *figures_of(name), f"runs/{name}/tracking.json"]
