# Names in paths, what has to run, and how each step is started.
import atexit
import functools
import inspect
from pathlib import Path

from edm.chain.provenance import made
from edm.chain.remaking import check_sources, new_marker, set_aside, to_present

atexit.register(PROVENANCE.hashes.save)


def known(function):
    """The function, with its signature at hand: Snakemake asks for it some thirty times per job."""
    function.__signature__ = inspect.signature(function)
    return function


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


# How a step is started, which also writes its sidecar: by itself, or as several processes that share its work. What it
# is run on decides nothing about its result: these are resources, no params, whose change would make a step run again.
# In profiles they can be changed; CPUs too, which `threads` would limit to those of the machine where Snakemake runs.
# `exec`: a shell in between would die of the signals that ask a step to stop, and leave it no time.
STEP = "exec edm launch {params.step:q} "
LAUNCH = STEP + "--gpus {resources.gpu} --nodes {resources.nodes} --threads {resources.cpus_per_task} --"


def machine(gpus, nodes=None):
    """The resources that say how many GPUs (and nodes) of an experiment's settings a step works on."""

    def of(value):
        return known(lambda w: value(concerned(w)))

    asked = dict(gpu=of(gpus), nodes=1, tasks_per_gpu=0, cpus_per_task=1)
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


def made_from(rule, *names, key=None):
    """The inputs of a step by name: `files`, and the `parts` that share its work. Whether it runs, `to_run` tells.

    Times tell nothing, since every checkout changes them: a step that runs takes a marker that is newer than all, and
    its inputs plainly, so that it also runs where a step before it does; any other takes them whatever their times.
    Jobs of a cluster read this file again; what they run is decided already.
    """

    def find(wildcards):
        job = job_of(rule, names, wildcards, key)
        runs = job in to_run()
        if runs:
            report_stale(job)
        taken = list if runs else lambda paths: [ancient(path) for path in paths]
        found = dict(files=taken(job.inputs), stale=[marker()] if runs else [])
        if job.parts:
            found |= dict(parts=taken(job.parts), sidecars=taken(f"{part}.json" for part in job.parts))
        return found

    return known(find)


@functools.cache
def to_run():
    """The steps that this call of Snakemake has to run, in their order; what it was asked for is in its settings."""
    asked = workflow.dag_settings
    if not workflow.is_main_process:
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
    return dict.fromkeys(found)


def named(words):
    """The files that words of the command line stand for: themselves, or what a rule without wildcards is about."""
    for word in words:
        if not workflow.is_rule(word):
            yield os.path.relpath(word)
        elif not (rule := workflow.get_rule(word)).has_wildcards():
            yield from map(str, rule.output or rule.input)


@functools.cache
def marker():
    path = new_marker(path for job in to_run() for path in job.outputs)
    atexit.register(Path(path).unlink, missing_ok=True)
    return path


onstart:
    if to_run() and not workflow.touch:
        for path, place in set_aside(PROVENANCE, to_run()):
            print(f"{path}: not as a step of this chain made it; it is kept as {place}", file=sys.stderr)
        # The jobs are chosen: what they make has to be newer than all that they are made from.
        inside = (path for job in to_run() for path in (*(path for path, _ in made(CHAIN, job)), *job.parts))
        to_present([marker(), *inside])


def job_of(rule, names, wildcards, key=None):
    return CHAIN.by_name[f"{rule} {key or '/'.join(wildcards[name] for name in names)}"]


REPORTED = set()


def report_stale(job):
    """Says what was changed, of the first twenty steps; not, that something before them was."""
    why = PROVENANCE.why_stale(job)
    derived = any(PROVENANCE.why_stale(maker) for _, maker in made(CHAIN, job))
    if why and len(REPORTED) < 20 and job not in REPORTED and not derived:
        REPORTED.add(job)
        print(f"{job.name}: {why}", file=sys.stderr)


@functools.cache
def plan():
    """The digest that each step is planned with; and what is fetched before, so that its content is not in it yet."""
    fetched = [path for job in to_run() if job.rule == "download" for path in job.outputs]
    return PROVENANCE.planned(fetched), [word for path in fetched for word in ("--fetched", path)]


def step(rule, *names, key=None):
    """What `edm launch` is told of a step: its name, and the digest of the specification that it is planned with."""

    def options(wildcards):
        job = job_of(rule, names, wildcards, key)
        if not workflow.is_main_process:
            return ["--step", job.name]
        planned, fetched = plan()
        return ["--step", job.name, "--digest", planned(job), *fetched]

    return known(options)


def expect(rule, *names):
    """The digest of a step's own settings, for its command, which reads params.yaml itself."""
    return known(lambda w: digest(CHAIN.specification(job_of(rule, names, w))))
