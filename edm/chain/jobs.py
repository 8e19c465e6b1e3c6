"""The chain: all jobs of a params file, and the jobs that a target needs."""

import difflib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edm.chain import paths
from edm.chain.job import EVERY, Job, Only
from edm.chain.rules import RULES
from edm.errors import UserError, nearest
from edm.params import Experiment, Params, Report
from edm.params.lazy import Lazy


class Chain:
    """The jobs of a params file: all, or of one that a workflow has planned those that are asked for.

    :meth:`job` and :meth:`maker` find one job without building the others, :attr:`by_name` and :attr:`makers` hold all.
    """

    def __init__(self, params: Params) -> None:
        self.params: Params = params
        self.experiments: Mapping[str, Experiment] = Lazy(params.raw["experiments"], params.experiment)
        self.reports: Mapping[str, Report] = Lazy(params.reports, params.report)
        self._found: dict[str, Job | None] = {}
        if not params.planned:  # each is checked
            _ = [*self.experiments.values(), *self.reports.values()]

    def targets(self, name: str) -> list[str]:
        """The files of a report, an experiment, "REPORT/TABLE", "REPORT/FIGURE", or a file of the chain itself."""
        if name in self.reports:
            report = self.reports[name]
            tables = [file for table in report.tables for file in paths.table_files(name, table)]
            figures = [file for figure in report.figures for file in paths.figure_files(name, figure)]
            return [*tables, *figures, *paths.metrics_files(name), *paths.about_files(name), paths.tracking_file(name)]
        if name in self.experiments:
            one = self.experiments[name]
            bits = [paths.likelihood_file(one, model, kind) for kind in one.likelihoods
                    for model in one.likelihoods[kind].models]  # fmt: skip
            return [paths.evaluation_file(evaluation) for evaluation in one.evaluations()] + bits
        owner, _, part = name.partition("/")
        if owner in self.reports and part in self.reports[owner].tables:
            return paths.table_files(owner, part)
        if owner in self.reports and part in self.reports[owner].figures:
            return paths.figure_files(owner, part)
        if self.maker(name):
            return [name]
        raise UserError(self.unknown(name))

    def unknown(self, name: str, further: Iterable[str] = ()) -> str:
        """One line on a target that there is not, with the nearest name. further: names beside those of the chain."""
        owner, _, part = name.partition("/")
        known = list(dict.fromkeys([*self.reports, *self.experiments]))
        near = [*known, *further]
        if owner in self.reports and part:
            near = known = [f"{owner}/{one}" for one in (*self.reports[owner].tables, *self.reports[owner].figures)]
        elif part:
            files = [path for job in self.by_name.values() for path in job.outputs]
            near += difflib.get_close_matches(name, files, n=1, cutoff=0.9)  # paths have much in common
        hint = nearest(name, near)
        if not hint.endswith("?"):
            hint = f"{nearest(name, known)}, REPORT/TABLE or a file"
        return f"{name}: no job makes it{hint}"

    def needed(self, targets: Iterable[str]) -> list[Job]:
        """Every job that the target files need, each once, makers before users, even if the files exist."""
        found: dict[tuple[str, ...], Job] = {}
        open_jobs: set[Job] = set()  # whose inputs are being visited
        stack = [(path, False) for path in reversed(list(targets))]
        while stack:
            path, ready = stack.pop()
            job = self.maker(path)
            if job is None or (job.rule, *job.key) in found:
                continue
            if ready:
                found[(job.rule, *job.key)] = job
            elif job in open_jobs:
                raise UserError(f"{path}: {job.name} makes it and needs it; name another file in {self.params.path}")
            else:
                open_jobs.add(job)
                stack.append((path, True))
                stack.extend((source, False) for source in reversed((*job.files, *job.parts)))
        return list(found.values())

    def job(self, name: str) -> Job | None:
        """The job of a name, such as "train digits/vp-F", or None."""
        if self.params.planned:
            rule, _, rest = name.partition(" ")
            key = RULES[rule].key_of(rest) if rule in RULES else None
            return self._single(rule, key) if key else self._listed.get(name)
        return self.by_name.get(name)

    def maker(self, path: str) -> Job | None:
        """The job that makes a file, or None."""
        if not self.params.planned:
            return self.makers.get(path)
        if path not in self._found:
            keys = ((rule, RULES[rule].key(path)) for rule in RULES)
            jobs = [*self._listed.values(), *(self._single(rule, key) for rule, key in keys if key)]
            self._found[path] = next((job for job in jobs if job is not None and path in job.outputs), None)
        return self._found[path]

    def _single(self, rule: str, key: tuple[str, ...]) -> Job | None:
        return next((job for job in RULES[rule].jobs(self, Only(key)) if job.key == key), None)

    @functools.cached_property
    def _listed(self) -> dict[str, Job]:
        """By name, the jobs of the rules whose paths do not tell their keys."""
        found = (job for rule in RULES.values() if not rule.files for job in rule.jobs(self, EVERY))
        return {job.name: job for job in found}

    @functools.cached_property
    def makers(self) -> dict[str, Job]:
        """The job that makes each file. Raises UserError if two jobs make the same one."""
        found: dict[str, Job] = {}
        for job in self.jobs():
            for path in job.outputs:
                if (other := found.setdefault(path, job)) is not job:
                    raise UserError(
                        f"{path}: both {other.name} and {job.name} make it; name another file in {self.params.path}"
                    )
        return found

    @functools.cached_property
    def by_name(self) -> dict[str, Job]:
        """Every job by its name, such as "train digits/vp-F"."""
        return {job.name: job for job in self.makers.values()}

    def steps(self, stage: str, name: str) -> list[str]:
        """The files that a stage makes for a dataset ("data"), or for an experiment or a report (the other stages).

        Those of shared steps are among them.
        """
        members = dict.fromkeys((name, *(self.members(name) if name in self.reports else ())))
        return [path for member in members for path in self._by_stage.get((stage, member), ())]

    @functools.cached_property
    def _by_stage(self) -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = {}
        for job in self.by_name.values():
            if RULES[job.rule].kept:
                found.setdefault((RULES[job.rule].stage, job.key[0]), []).extend(job.outputs)
        for name, experiment in self.experiments.items():
            for (rule, *key), owner in experiment.shared.items():
                job = self.by_name["/".join((f"{rule} {owner}", *key))]
                found.setdefault((RULES[rule].stage, name), []).extend(job.outputs)
        return found

    def specification(self, job: Job) -> Any:
        """The settings that affect the result of a job, without its inputs, as plain data."""
        return RULES[job.rule].settings(self, job)

    def raw_sources(self, job: Job) -> list[str]:
        """The inputs of a job that no job makes, existing or not."""
        if job.rule == "prepare":
            return self._raw_sources(job.key[0])
        if job.rule == "published":
            return [self.pretrained(*job.key)["path"]]
        makers = ((path, self.maker(path)) for path in job.files)
        return [path for path, maker in makers if maker is None or maker.rule == "download"]

    @functools.cached_property
    def advised(self) -> list[str]:
        """The datasets for which settings are derived: by default a user's own folders of images."""
        datasets = self.params.raw["datasets"].items()
        return [name for name, raw in datasets if raw.get("advise", raw["source"] == "folder")]

    def downloads_for(self, names: Iterable[str]) -> list[str]:
        """The missing downloads of some reports or experiments."""
        targets = (path for name in names for path in self.targets(name))
        return list(dict.fromkeys(path for target in targets for path in self._downloads.get(target, ())))

    @functools.cached_property
    def _downloads(self) -> dict[str, tuple[str, ...]]:
        """The missing downloads that each file needs; of all files at once, since a Snakefile asks for every target."""
        found: dict[str, tuple[str, ...]] = {}
        for job in self.needed(self.makers):
            own = job.outputs if job.rule == "download" else ()
            of_inputs = (download for path in (*job.files, *job.parts) for download in found.get(path, ()))
            found |= dict.fromkeys(job.outputs, tuple(dict.fromkeys((*own, *of_inputs))))
        return found

    def jobs(self) -> Iterator[Job]:
        """Every job of the chain."""
        for rule in RULES.values():
            yield from rule.jobs(self, EVERY)

    def absent_downloads(self) -> list[str]:
        """The downloads that do not exist yet. No rule replaces an existing file, which may be the user's own."""
        return [path for path in self.params.downloads if not os.path.exists(path)]

    def raw_inputs(self, dataset: str) -> list[str]:
        """The raw files of a dataset that exist or can be downloaded.

        A folder whose files are downloads is always a list of these files, also after the first of them arrived.
        """
        made_up = [raw["path"] for raw in self.params.raw["datasets"].values() if raw.get("made_up")]
        return [path for path in self._raw_sources(dataset) if path in made_up or self.obtainable(path)]

    def _raw_sources(self, dataset: str) -> list[str]:
        stated, found = self.params.dataset(dataset)["path"], []
        for path in [stated] if isinstance(stated, str) else stated or []:
            inside = [file for file in self.params.downloads if file.startswith(f"{path}/")]
            if inside and (any(map(os.path.exists, inside)) or not os.path.exists(path)):
                found += inside
            else:
                found.append(path)
        return found

    @functools.cached_property
    def references(self) -> dict[str, tuple[Experiment, str]]:
        """The statistics that the chain computes, each with an experiment that uses it, and the extractor."""
        found = {}
        for experiment in self.experiments.values():
            for features in (experiment.features, *experiment.more_features):
                path = paths.reference_file(experiment, features)
                if path.startswith("data/references/"):
                    found[path] = (experiment, features)
            for path in paths.test_reference_file(experiment):
                found.setdefault(path, (experiment, experiment.features))
        return found

    def tracked(self, report: str) -> list[str]:
        """The folders with the journals of a report, of its experiments and of those whose steps they share."""
        members = self.reports[report].experiments.values()
        names = {report, *(name for member in members for name in (member.name, *member.owners))}
        return sorted(f"runs/{name}" for name in names)

    def members(self, report: str) -> list[str]:
        """The experiments of a report."""
        return [experiment.name for experiment in self.reports[report].experiments.values()]

    def published_file(self, experiment: str, model: str) -> str:
        """The name in params.yaml of a pretrained model's file."""
        return self.experiments[experiment].pretrained[model]

    def pretrained(self, experiment: str, model: str) -> dict[str, Any]:
        """The entry in params.yaml of a pretrained model's file."""
        return self.params.pretrained[self.published_file(experiment, model)]

    def obtainable(self, path: str) -> bool:
        """Whether a raw file exists or can be downloaded."""
        return path in self.params.downloads or os.path.exists(path)
