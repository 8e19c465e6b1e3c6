# Names in paths, what is stale, and how each step is started.
import atexit
import inspect

from edm.chain.provenance import made

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
# `--requeue`: a job that this workflow submitted runs nothing else, so it may go back to Slurm's queue. Another job, in
# which Snakemake itself was started (a terminal of Jupyter, a script of yours), is not to be touched.
STEP = "exec edm launch {params.step:q} " + ("--requeue " if workflow.remote_exec else "")
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
    """The inputs of a step by name: `files`, and the `parts` that share its work. Whether it runs, its sidecar tells.

    Times tell nothing, since every checkout changes them: a fresh step takes its inputs whatever their times, a stale
    one takes a marker that is newer than all. Jobs of a cluster read this file again; what they run is decided already.
    """

    def find(wildcards):
        job = job_of(rule, names, wildcards, key)
        why = PROVENANCE.why_stale(job) if workflow.is_main_process else None
        if why:
            report_stale(job, why)
        taken = list if why else lambda paths: [ancient(path) for path in paths]
        found = dict(files=taken(job.inputs), stale=[marker(job)] if why else [])
        if job.parts:
            found |= dict(parts=taken(job.parts), sidecars=taken(f"{part}.json" for part in job.parts))
        return found

    return known(find)


def job_of(rule, names, wildcards, key=None):
    return CHAIN.by_name[f"{rule} {key or '/'.join(wildcards[name] for name in names)}"]


REPORTED = set()


def report_stale(job, why):
    """Says what was changed, of the first twenty steps; not, that something before them was."""
    derived = any(PROVENANCE.why_stale(maker) for _, maker in made(CHAIN, job))
    if len(REPORTED) < 20 and job not in REPORTED and not derived:
        REPORTED.add(job)
        print(f"{job.name}: {why}", file=sys.stderr)


def marker(job):
    missing = [path for path in job.inputs if path not in CHAIN.makers and not os.path.exists(path)]
    if missing:  # else Snakemake would take the step's old files for sources
        raise WorkflowError(f"{missing[0]}: not there, and {job.name} has to run again")
    return renew_marker([*job.outputs, *(path for path, _ in made(CHAIN, job))])


def step(rule, *names, key=None):
    """What `edm launch` is told of a step: its name, and the digest of the specification that it is planned with."""

    def options(wildcards):
        job = job_of(rule, names, wildcards, key)
        return ["--step", job.name, *(["--digest", PROVENANCE.digest(job)] if workflow.is_main_process else [])]

    return known(options)


def expect(rule, *names):
    """The digest of a step's own settings, for its command, which reads params.yaml itself."""
    return known(lambda w: digest(CHAIN.specification(job_of(rule, names, w))))
