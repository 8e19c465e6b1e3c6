# Names in paths, the selection of stale steps, and the command that starts each step.
import atexit
import functools
import inspect
import os
import re
import sys
from pathlib import Path

from snakemake.logging import logger

from edm.chain.plan import reasons, weights
from edm.chain.provenance import made
from edm.chain.remaking import check_sources, new_marker, set_aside, to_present
from edm.cluster import forkserver
from edm.cluster.slurm import require_slurm
from edm.commands.launching import IMPORTED

atexit.register(PROVENANCE.hashes.save)


def known(function):
    """The function with its signature cached: Snakemake inspects it about thirty times per job."""
    function.__signature__ = inspect.signature(function)
    return function


def either(names):
    """A regular expression that matches any of the names; without names, one that matches nothing."""
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or "(?!)"


def own(experiment, rule, model):
    """Whether a model's step is the experiment's own, not shared. Jobs of a cluster know that from the plan."""
    return not PLANS or experiment.owner(rule, model) == experiment.name


# A choice or an average of an experiment that shares another's training run is its own.
TRAINED = either(f"{e.name}/{model}" for e in CHAIN.experiments.values() for model in e.models)


wildcard_constraints:
    dataset=either(PARAMS.raw["datasets"]),
    experiment=either(CHAIN.experiments),
    model=either({model for e in CHAIN.experiments.values() for model in e.all_models}),
    report=either(CHAIN.reports),
    table=either({table for r in CHAIN.reports.values() for table in r.tables}),
    figure=either({figure for r in CHAIN.reports.values() for figure in r.figures}),
    # Training and import write the same file name: the pair of experiment and model decides which rule makes it.
    trained=either(
        f"{e.name}/{model}" for e in CHAIN.experiments.values() for model in e.models if own(e, "train", model)
    ),
    pretrained=either(
        f"{e.name}/{model}" for e in CHAIN.experiments.values() for model in e.pretrained if own(e, "published", model)
    ),
    evaluation="[^/]+(/[^/]+)?",


# `edm launch` starts a step as one process or as several that share its work, and writes its sidecar. GPUs, nodes and
# CPUs do not affect the result, so they are resources: a change of `params` would make Snakemake rerun the step.
# Profiles can change them. CPUs are not `threads`, which Snakemake limits to the CPUs of the machine where it runs.
# `exec`: a shell in between would die from the signals that ask a step to stop, and leave the step no time.
# `--requeue`: a job that this workflow submitted runs nothing else, so it may go back to Slurm's queue. A job in which
# the user started Snakemake (a Jupyter terminal, a script) must not be requeued.
STEP = f"exec edm launch {{params.step:q}}{' --requeue' if workflow.remote_exec else ''}"
GPUS = "--gpus {resources.gpu} --nodes {resources.nodes} --threads {resources.cpus_per_task}"


def started(command):
    """The shell command of a step that one process performs."""
    return f"{STEP} -- {command}"


def launched(command):
    """The shell command of a step that as many processes perform as it has GPUs."""
    return f"{STEP} {GPUS} -- {command}"


def machine(gpus, nodes=None, *options):
    """The resources of a step: GPUs (and nodes) from the settings of its experiment; sbatch's options, the user's first."""

    def of(value):
        return known(lambda w: value(concerned(w)))

    asked = dict(gpu=of(gpus), nodes=1, tasks_per_gpu=0, cpus_per_task=1)
    if nodes:  # the step itself starts one task on each of several nodes; Slurm's plugin calls this `mpi`
        several = lambda value: of(lambda e: value(e) if nodes(e) > 1 else None)
        asked |= dict(nodes=of(nodes), mpi=several(lambda e: "srun"), tasks=several(nodes))
    if stated := " ".join(option for option in (config.get("sbatch"), *options) if option):
        asked["slurm_extra"] = stated
    if config.get("gpu_type"):
        asked["gpu_model"] = of(lambda e: config["gpu_type"] if gpus(e) else None)
    if config.get("gpu_partition"):
        asked["slurm_partition"] = of(lambda e: config["gpu_partition"] if gpus(e) else config.get("partition"))
    return asked


def concerned(wildcards):
    """The experiment of a step; if several share the step, the first."""
    named = [wildcards[name] for name in ("experiment", "trained", "pretrained") if name in wildcards.keys()]
    if named:
        return CHAIN.experiments[named[0].split("/")[0]]
    return CHAIN.references[f"data/references/{wildcards.dataset}/{wildcards.statistics}.npz"][0]


ONE_GPU = machine(lambda e: min(e.sampling.gpus, 1))
SAMPLING = machine(lambda e: e.sampling.gpus)
# Slurm sends SIGTERM 120 seconds before the time limit, even if the limit changes while the job runs: to the steps that
# resume from what they have finished.
SIGNAL = "--signal=TERM@120"
TRAINING = machine(lambda e: e.training.gpus, lambda e: e.training.nodes, SIGNAL)
MEASURING = machine(lambda e: e.sampling.gpus, None, SIGNAL)
EVALUATING = machine(lambda e: e.sampling.gpus if e.sampling.shards == 1 else 0, None, SIGNAL)
MERGING = machine(lambda e: e.sampling.gpus if e.sampling.shards == 1 else 0)


def inputs_of(rule, *names, key=None):
    """An input function: the inputs of a step by name, and the `parts` that share its work.

    `to_run` decides which steps run. File times do not count, since every checkout changes them. A step that runs gets
    an extra input, a marker newer than all files, and its plain inputs, so that it waits for the steps before it. The
    inputs of all other steps are `ancient`: Snakemake ignores their times. Jobs of a cluster read this file again after
    the decision, so `to_run` is empty for them.
    """

    def find(wildcards):
        job = job_of(rule, names, wildcards, key)
        runs = job in to_run()
        if runs:
            report_stale(job)
        taken = list if runs else lambda paths: [ancient(path) for path in paths]
        found = {name: taken(files) for name, files in job.inputs.items()} | dict(stale=[marker()] if runs else [])
        if job.parts:
            found |= dict(parts=taken(job.parts), sidecars=taken(f"{part}.json" for part in job.parts))
        return found

    return known(find)


@functools.cache
def to_run():
    """The steps that this call of Snakemake has to run, in order. Snakemake's settings hold the requested targets."""
    asked = workflow.dag_settings
    if not PLANS:
        return {}
    targets = [*named(asked.targets or [workflow.default_target]), *named(asked.forcerun), *named(asked.until)]
    forced = [*named(asked.forcerun), *(targets if asked.forcetargets or asked.forceall else ())]
    by_rule = (job for job in CHAIN.by_name.values() if job.rule in asked.forcerun or asked.forceall)
    forced += (path for job in by_rule for path in job.outputs)
    try:
        found = PROVENANCE.to_run(targets, forced)
        check_sources(CHAIN, found)
    except UserError as error:
        raise WorkflowError(str(error))
    targets = [rule.name for rule in workflow.rules if not rule.output]
    logger.info(None, extra=dict(edm_planned=reasons(PROVENANCE, found), edm_targets=targets))
    return dict.fromkeys(found)


def named(words):
    """The files that words of the command line name: a path itself, or the files of a rule without wildcards."""
    for word in words:
        if not workflow.is_rule(word):
            yield os.path.relpath(word)
        elif not (found := workflow.get_rule(word)).has_wildcards():
            yield from map(str, found.output or found.input)


@functools.cache
def marker():
    path = new_marker(path for job in to_run() for path in job.outputs)
    atexit.register(Path(path).unlink, missing_ok=True)
    return path


onstart:
    if workflow.executor_plugin.name == "slurm":
        try:
            require_slurm()  # otherwise each submission would fail, three times
        except UserError as error:
            raise WorkflowError(str(error))
    if to_run() and not workflow.touch:
        for path, place in set_aside(PROVENANCE, to_run()):
            print(f"{path}: not as a step of this chain made it; it is kept as {place}", file=sys.stderr)
        # Snakemake has chosen the jobs. Their outputs must become newer than all their inputs.
        inside = (path for job in to_run() for path in (*(path for path, _ in made(CHAIN, job)), *job.parts))
        to_present([marker(), *inside])
    # Steps on this machine fork from a process that has imported what takes seconds; in containers they cannot.
    if workflow.executor_plugin.name == "local" and not workflow.deployment_settings.deployment_method:
        if len(to_run()) > 2:
            forkserver.start(IMPORTED)
    logger.info(None, extra=dict(edm_costs=weights(CHAIN, to_run())))


def job_of(rule, names, wildcards, key=None):
    name = f"{rule} {key or '/'.join(wildcards[name] for name in names)}"
    if (job := CHAIN.job(name)) is None:
        raise WorkflowError(f"{name}: params.yaml has no such step; a shared step is that of the extended experiment")
    return job


REPORTED = set()


def report_stale(job):
    """Prints why a step is stale, for the first twenty stale steps that have no stale step before them."""
    why = PROVENANCE.why_stale(job)
    derived = any(PROVENANCE.why_stale(maker) for _, maker in made(CHAIN, job))
    if why and len(REPORTED) < 20 and job not in REPORTED and not derived:
        REPORTED.add(job)
        print(f"{job.name}: {why}", file=sys.stderr)


@functools.cache
def plan():
    """The digest that each step is planned with, and the options that name the files still to be downloaded.

    The planned digests do not yet include the content of these files.
    """
    fetched = [path for job in to_run() if job.rule == "download" for path in job.outputs]
    return PROVENANCE.planned(fetched), [word for path in fetched for word in ("--fetched", path)]


def step(rule, *names, key=None):
    """The options that `edm launch` gets for a step: its name and the digest of its planned specification."""

    def options(wildcards):
        job = job_of(rule, names, wildcards, key)
        if not PLANS:
            return ["--step", job.name]
        planned, fetched = plan()
        return ["--step", job.name, "--digest", planned(job), *fetched]

    return known(options)


def expect(rule, *names, key=None):
    """The digest of a step's settings. Its command, which reads params.yaml itself, compares it."""
    return known(lambda w: digest(CHAIN.specification(job_of(rule, names, w, key))))


def measuring(rule, *names):
    """The references, weights and searched settings of a step, as options of its command."""
    return known(lambda w: measuring_options(job_of(rule, names, w)))


def reference(dataset, statistics):
    return f"data/references/{dataset}/{statistics}.npz"


def reference_options(wildcards):
    """The options for computing reference statistics; all experiments that use a file agree in them."""
    experiment, features = CHAIN.references[reference(wildcards.dataset, wildcards.statistics)]
    keep = ["--keep-features", str(MOST_FEATURES)] if paths.keeps_features(experiment, features) else []
    weights = paths.weights_of(experiment, features)
    return ["--features", features, *(["--weights", *weights] if weights else []), *keep]


def trained_names(wildcards):
    """The experiment and the model of a training run, as options of its command."""
    experiment, model = Path(wildcards.trained).parts
    return ["--experiment", experiment, "--model", model]
