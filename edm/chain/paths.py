"""The paths of the chain, relative to the folder of params.yaml; a shared step has its owner's (edm.params.sharing).

`data`, `models`, `results` and `steps` hold the files that DVC keeps; `runs` is the working space of one machine.
"""

from collections.abc import Iterable
from dataclasses import replace

from edm.files.hashes import digest
from edm.metrics import CLASSIFIER, need_reference_features
from edm.params import Evaluation, Experiment, Report
from edm.params.experiment import guiding_model, training_of

TABLE_FORMATS = (".md", ".csv", ".tex", ".html")
FIGURE_FORMATS = (".png", ".svg")
ABOUT = ("configuration", "environment", "runtime")  # provenance pages of a report
#: The curves of a report that DVC plots: name → quantities of the axes.
PLOT_FILES = {"loss": ("images", "loss"), "levels": ("sigma", "error"), "nfe": ("nfe", "distance"),
              "churn": ("S_churn", "distance")}  # fmt: skip


def archive(dataset: str) -> str:
    return f"data/{dataset}.zip"


def advice_file(dataset: str) -> str:
    """Settings that fit a dataset, as ``edm advise`` finds them; beside its statistics, which are kept."""
    return f"data/references/{dataset}/advice.json"


def classifier(dataset: str) -> str:
    return f"data/features/{dataset}-classifier.safetensors"


def reference_file(experiment: Experiment, features: str | None = None) -> str:
    """Reference statistics; experiments with the same dataset, extractor and weights share them."""
    features = features or experiment.features
    if features == experiment.features and experiment.reference is not None:
        return experiment.reference
    path = experiment.feature_weights if features == experiment.features else experiment.more_features[features]
    kept = "-with-features" if keeps_features(experiment, features) else ""
    weights = f"-{digest(path)[:6]}" if path else ""
    return f"data/references/{experiment.dataset}/{features}{weights}{kept}.npz"


def test_reference_file(experiment: Experiment) -> list[str]:
    """Statistics of the held-out images, in the experiment's features; a list of one or none."""
    if experiment.test is None:
        return []
    own = reference_file(replace(experiment, dataset=experiment.test, reference=None))
    # Each training set has a classifier of its own.
    return [own.replace(".npz", f"-of-{experiment.dataset}.npz") if experiment.features == CLASSIFIER else own]


def keeps_features(experiment: Experiment, features: str) -> bool:
    """Whether a reference must contain the features: some metrics compare sets, not Gaussians."""
    return features == experiment.features and need_reference_features(experiment.metrics)


def weights_of(experiment: Experiment, features: str | None = None) -> list[str]:
    """The extractor's weights: trained by the chain, a local file, or none (torch-fidelity downloads its own once)."""
    features = features or experiment.features
    if features == CLASSIFIER:
        return [classifier(experiment.dataset)]
    path = experiment.feature_weights if features == experiment.features else experiment.more_features[features]
    return [path] if path else []


def final_model(experiment: Experiment, model: str) -> str:
    rule = "published" if model in experiment.pretrained else "train"
    return f"models/{experiment.owner(rule, model)}/{model}/model.safetensors"


def levels_file(experiment: Experiment, model: str) -> str:
    return f"models/{experiment.owner('train', model)}/{model}/levels.json"


def model_file(experiment: Experiment, model: str) -> str:
    """The evaluated model: an average, the best snapshot if the experiment chooses one, else the final model."""
    training, mark = training_of(model)
    if mark:
        return average_file(experiment, training, mark)
    if not experiment.chosen(model):
        return final_model(experiment, model)
    return f"models/{experiment.owner('choose', model)}/{model}/best.safetensors"


def average_file(experiment: Experiment, training: str, mark: str) -> str:
    """mark: the width, and the time of one before the last snapshot: "0.13", "0.13-at-20"."""
    return f"models/{experiment.owner('average', training, mark)}/{training}/ema-{mark}.safetensors"


def guide_file(experiment: Experiment, guide: str, images: int | None) -> str:
    """The checkpoint of a guide: an evaluated model, or the snapshot of a training run after so many images."""
    model, _ = guiding_model(guide)
    if images is None:
        return model_file(experiment, model)
    return f"runs/{experiment.owner('train', model)}/{model}/snapshots/{images:012d}.safetensors"


def guides_of(experiment: Experiment, guides: Iterable[str | None]) -> list[str]:
    """The models that guides need: a snapshot, which is not kept, comes with its final model."""
    needed = (guide_file(experiment, guide, images) if images is None
              else final_model(experiment, guiding_model(guide)[0])
              for guide, images in experiment.guides(guides).items())  # fmt: skip
    return list(dict.fromkeys(needed))


def choice_file(experiment: str, model: str) -> str:
    return f"models/{experiment}/{model}/choice.json"


def evaluation_file(evaluation: Evaluation) -> str:
    return f"results/{evaluation.experiment}/distances/{evaluation.model}/{evaluation.name}.json"


def shard_files(experiment: Experiment, model: str, name: str) -> list[str]:
    """The parts of an evaluation, in the order of their seeds; empty if one job does all of it."""
    count, folder = experiment.sampling.shards, f"runs/{experiment.name}/{model}/distances/{name}.shards"
    return [f"{folder}/{number}-of-{count}.safetensors" for number in range(1, count + 1)] if count > 1 else []


def search_file(experiment: Experiment, model: str, name: str) -> str:
    return f"results/{experiment.owner('search', model, name)}/searches/{model}/{name}.json"


def likelihood_file(experiment: Experiment, model: str, name: str) -> str:
    return f"results/{experiment.owner('likelihood', model, name)}/likelihoods/{model}/{name}.json"


def likelihood_parts(experiment: Experiment, model: str, name: str) -> list[str]:
    """The parts of a likelihood, in the order of their images; empty if one job does all of it."""
    count, folder = experiment.sampling.shards, f"runs/{experiment.name}/{model}/likelihoods/{name}.shards"
    return [f"{folder}/{number}-of-{count}.json" for number in range(1, count + 1)] if count > 1 else []


def sheet_file(experiment: Experiment, model: str, name: str) -> str:
    return f"runs/{experiment.owner('sample', model, name)}/{model}/sheets/{name}.safetensors"


def analysis_file(experiment: Experiment, model: str, name: str) -> str:
    return f"runs/{experiment.owner('analyse', model, name)}/{model}/analyses/{name}.safetensors"


def table_files(report: str, table: str) -> list[str]:
    return [f"results/{report}/tables/{table}{suffix}" for suffix in TABLE_FORMATS]


def figure_files(report: str, figure: str) -> list[str]:
    return [f"results/{report}/figures/{figure}{suffix}" for suffix in FIGURE_FORMATS]


def metrics_files(report: str) -> list[str]:
    return [f"results/{report}/metrics.json", *(f"results/{report}/plots/{name}.csv" for name in PLOT_FILES)]


def about_files(report: str) -> list[str]:
    return [f"results/{report}/about/{page}.html" for page in ABOUT]


def tracking_file(report: str) -> str:
    return f"results/{report}/tracking.json"


def shown_files(report: Report) -> list[str]:
    """One file of each table and figure of a report."""
    tables = [table_files(report.name, table)[0] for table in report.tables]
    return tables + [figure_files(report.name, figure)[0] for figure in report.figures]


def traces(rule: str, key: tuple[str, ...]) -> str:
    """What the names of the files begin with that a running step writes besides its outputs: logs and journals."""
    owner, rest = key[0], key[1:]
    beside = {
        "likelihood": "likelihoods",
        "evaluate": "distances",
        "search": "searches",
        "sample": "sheets",
        "analyse": "analyses",
    }
    match rule:
        case "train":
            return f"runs/{owner}/{rest[0]}/"
        case "published":
            return f"runs/{owner}/{rest[0]}/import."
        case "choose":
            return f"runs/{owner}/{rest[0]}/cho"  # choose.log, choice.journal.jsonl
        case "average":
            return f"runs/{owner}/{rest[0]}/ema-{rest[1]}."
        case "shard":
            return f"runs/{owner}/{rest[0]}/distances/{'/'.join(rest[1:-1])}.shards/{rest[-1]}."
        case "likelihood_shard":
            return f"runs/{owner}/{rest[0]}/likelihoods/{rest[1]}.shards/{rest[2]}."
        case "table" | "figure":
            return f"runs/{owner}/logs/{rest[0]}."
        case "metrics" | "about":
            return f"runs/{owner}/logs/{rule}."
        case "track":
            return f"runs/{owner}/tracking."
        case "download":
            return f"runs/logs/{owner.replace('/', '-')}."
        case _ if rule in beside:
            return f"runs/{owner}/{rest[0]}/{beside[rule]}/{'/'.join(rest[1:])}."
    return f"runs/logs/{'-'.join((rule.replace('_', '-'), *key))}."
