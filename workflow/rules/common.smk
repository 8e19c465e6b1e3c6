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


# How a step is started: by itself, or as several processes that share its work. What it is run on decides nothing about
# its result: these are resources, no params, whose change would make a step run again. In profiles they can be changed;
# CPUs too, which `threads` would limit to those of the machine where Snakemake runs. `exec`: a shell in between would die
# of the signals that ask a step to stop, and leave it no time.
LAUNCH = "exec edm launch --processes {resources.processes} --nodes {resources.nodes} --threads {resources.cpus_per_task} --"


def machine(gpus, nodes=None):
    """The resources that say how many GPUs (and nodes) of an experiment's settings a step works on."""

    def of(value):
        return lambda w: value(concerned(w))

    asked = dict(gpu=of(gpus), processes=of(lambda e: max(gpus(e), 1)), nodes=1, tasks_per_gpu=0, cpus_per_task=1)
    if nodes:  # such a step itself starts one task on each of several nodes, which Slurm's plugin calls `mpi`
        several = lambda value: of(lambda e: value(e) if nodes(e) > 1 else None)
        asked |= dict(nodes=of(nodes), mpi=several(lambda e: "srun"), tasks=several(nodes))
    if config.get("gpu_type"):
        asked["gpu_model"] = of(lambda e: config["gpu_type"] if gpus(e) else None)
    if config.get("gpu_partition"):
        asked["slurm_partition"] = of(lambda e: config["gpu_partition"] if gpus(e) else config.get("partition"))
    return asked


def concerned(wildcards):
    """The experiment that a step belongs to; of several that share it, the first."""
    named = [wildcards[name] for name in ("experiment", "trained", "pretrained") if name in wildcards.keys()]
    if named:
        return CHAIN.experiments[named[0].split("/")[0]]
    return CHAIN.references[f"data/references/{wildcards.dataset}/{wildcards.statistics}.npz"][0]


ONE_GPU = machine(lambda e: min(e.sampling.gpus, 1))
SAMPLING = machine(lambda e: e.sampling.gpus)
TRAINING = machine(lambda e: e.training.gpus, lambda e: e.training.nodes)
MERGING = machine(lambda e: e.sampling.gpus if e.sampling.shards == 1 else 0)


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
