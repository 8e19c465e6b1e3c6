# Names in paths, and the specification that each step is run with.
import functools


def either(names):
    """A pattern for any of some names; for none, one that nothing matches."""
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or "(?!)"


wildcard_constraints:
    dataset=either(PARAMS.raw["datasets"]),
    experiment=either(CHAIN.experiments),
    model=either({model for e in CHAIN.experiments.values() for model in e.all_models}),
    report=either(CHAIN.reports),
    table=either({table for r in CHAIN.reports.values() for table in r.tables}),
    figure=either({figure for r in CHAIN.reports.values() for figure in r.figures}),
    # Trained and imported models make the same file: who makes it is told by the pair of experiment and model.
    trained=either({f"{e.name}/{model}" for e in CHAIN.experiments.values() for model in e.models}),
    pretrained=either({f"{e.name}/{model}" for e in CHAIN.experiments.values() for model in e.pretrained}),
    evaluation="[^/]+(/[^/]+)?",


@functools.cache
def specification(kind, experiment, *rest):
    """What decides the outcome of a step, as one canonical text: Snakemake compares params as a set of values."""
    e = CHAIN.experiments[experiment]
    if kind == "evaluation":
        model, name = rest
        return e.evaluation_spec(e.evaluation(model, name))
    return getattr(e, f"{kind}_spec")(*rest)


def spec(kind, *names):
    return lambda w: canonical_json(specification(kind, *parts(w, names)))


def expect(kind, *names):
    return lambda w: digest(specification(kind, *parts(w, names)))


def parts(wildcards, names):
    """The values of some wildcards; "experiment/model" in one of them counts as two."""
    values = (getattr(wildcards, name) for name in names)
    return [part for value, name in zip(values, names) for part in (value.split("/") if name in ("trained", "pretrained") else [value])]


def inputs(function, *names):
    return lambda w: function(*parts(w, names))
