"""The lineage of a number: the steps from its cell back to the raw data, by their sidecars. Free of torch.

Hashes identify the inputs of a step: a sidecar describes a file only if the hashes agree. Without such a sidecar the
entry has the key ``unknown``; the current params.yaml fills no gaps.
"""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edm.analysis.bits import read_bits
from edm.chain.job import Job
from edm.chain.jobs import Chain
from edm.chain.paths import (
    analysis_file,
    choice_file,
    evaluation_file,
    levels_file,
    likelihood_file,
    search_file,
)
from edm.chain.provenance import Provenance
from edm.chain.rules import measuring_options
from edm.chain.sidecars import ORIGIN, sidecar_file
from edm.config import SamplerConfig, TrainingConfig
from edm.errors import UserError, nearest
from edm.evaluation.records import read_choice, read_results, read_search
from edm.files.hashes import LOCAL, digest
from edm.params import Experiment, Params, Report
from edm.params.catalogue import PUBLISHED
from edm.params.layouts import table_layout
from edm.params.sources import Source
from edm.report.cells import Cell, Table
from edm.report.results import Measurement, Results
from edm.report.tables import build_table
from edm.tracking import origin
from edm.tracking.sync import run_id

AGAIN = str(LOCAL / "again.json")  # output of a repeated measurement


def trace(params: Params, table: str, row: str, column: str | None = None) -> dict[str, Any]:
    """The lineage of a cell of "REPORT/TABLE", as plain data.

    cell: its content. steps: the files behind it, users before makers, each with the fields of its sidecar and its
    inputs (``from``). measure_again, make_again: shell commands, one per line. cautions: reasons why the commands may
    not give this number. Raises UserError for unknown names, and for an empty cell, with the reason.
    """
    report, shown, column, cell = _find(params, table, row, column)
    place = {"table": table, "row": row, "column": column}
    source = table_layout(report, shown.name).rows[row][shown.columns.index(column)]
    if source is None or not cell.text:
        raise UserError(f"{table}, {row}, {column}: {_why_empty(cell, source)}")
    place["shown"] = cell.ours()
    if source.kind == "order":
        raise UserError(f"{table}, {row}, {column}: no file is behind it; `edm orders` measures it")
    if source.kind == "model":
        return _of_configuration(params, place, source)
    if source.kind == "search":
        return _of_search(Chain(params), place, cell, source)
    if source.kind == "likelihood":
        return _of_likelihood(Chain(params), place, cell, source)
    if source.kind == "levels":
        return _of_levels(Chain(params), place, cell, source)
    if source.kind == "analysis":
        return _of_study(Chain(params), place, cell, source)
    return _of_measurement(Chain(params), place, cell, source)


def _find(params: Params, table: str, row: str, column: str | None) -> tuple[Report, Table, str, Cell]:
    owner, _, name = table.partition("/")
    report = params.report(owner)
    if name not in report.tables:
        there = ", ".join(f"{owner}/{table}" for table in report.tables) or "none"
        raise UserError(f"{table}: no such table; {owner} has {there}")
    shown = build_table(report, name, Results(Path("results"), Path("runs")))
    if row not in shown.rows:
        raise UserError(f"{table} has no row {row!r}{_hint(row, list(shown.rows))}")
    if column is None and len(shown.columns) > 1:
        raise UserError(f"{table} has several columns; name one of {'; '.join(shown.columns)}")
    column = shown.columns[0] if column is None else column
    if column not in shown.columns:
        raise UserError(f"{table} has no column {column!r}{_hint(column, shown.columns)}")
    return report, shown, column, shown.rows[row][shown.columns.index(column)]


def _hint(word: str, names: list[str]) -> str:
    """The existing names; of many only the nearest, if one is similar."""
    return nearest(word, names) if len(names) > 6 else f"; it has {'; '.join(names)}"


def _why_empty(cell: Cell, source: Source | None) -> str:
    if source is None or not cell.missing:
        return "the table has nothing there"
    if source.kind == "search":
        makes = [search_file(source.experiment, source.model, source.name)]
    elif source.kind == "likelihood":
        makes = [likelihood_file(source.experiment, source.model, source.name)]
    elif source.kind == "levels":
        makes = [levels_file(source.experiment, source.model)]
    elif source.kind == "analysis":
        makes = [analysis_file(source.experiment, source.model, source.name)]
    else:
        makes = [evaluation_file(e) for e in source.experiment.evaluations_of(source.model, source.name)]
    more = f" (and {len(makes) - 1} more)" if len(makes) > 1 else ""
    return f"{cell.missing}; it is made by `snakemake {shlex.quote(makes[0])}`{more}"


def _of_configuration(params: Params, place: dict[str, Any], source: Source) -> dict[str, Any]:
    """A cell that describes a model: params.yaml states it, without a measurement."""
    experiment, model = source.experiment.name, source.model
    cell = {**place, "experiment": experiment, "model": model, "told_by": params.path}
    cell |= {"configuration": source.experiment.training_spec(model), **_code()}
    again = ["edm", "train", "--experiment", experiment, "--model", model, "--dry-run", *_params_option(params)]
    return {"cell": cell, "steps": [], "measure_again": [shlex.join(again)], "make_again": [], "cautions": []}


def _code() -> dict[str, str]:
    """Commit and dirty flag of the current code."""
    return {key: value for key, value in origin().items() if value}


def _of_search(chain: Chain, place: dict[str, Any], cell: Cell, source: Source) -> dict[str, Any]:
    experiment, model, search = source.experiment.name, source.model, source.name
    path = search_file(source.experiment, model, search)
    walk = _Walk(chain, path, read_search(path))
    found = {**place, "value": cell.value, "experiment": experiment, "model": model, "search": search}
    job = chain.makers[path]
    options = ["--search", search, *measuring_options(job)]
    again = ["search", job.one("model"), AGAIN, "--experiment", experiment, "--model", model, *options]
    return walk.finished(found, again, f"['settings']['{place['row']}']")


def _of_likelihood(chain: Chain, place: dict[str, Any], cell: Cell, source: Source) -> dict[str, Any]:
    experiment, name = source.experiment, source.name
    model, path = _first_run(source, lambda model: likelihood_file(experiment, model, name))
    record = read_bits(path)
    walk = _Walk(chain, path, record | {"metric": {}})
    found = {**place, "value": record["bits_per_dimension"], "s": record["s"], "images": record["images"],
             **_mean_of(cell), "experiment": experiment.name, "model": model, "likelihood": name,
             **walk.run(record.get("run"))}  # fmt: skip
    job = chain.makers[path]
    again = ["likelihood", job.one("model"), job.one("dataset"), AGAIN, "--experiment", job.key[0], "--model", model,
             "--likelihood", name]  # fmt: skip
    return walk.finished(found, again, "['bits_per_dimension']")


def _of_levels(chain: Chain, place: dict[str, Any], cell: Cell, source: Source) -> dict[str, Any]:
    """A number that is computed from the errors per noise level, which a training run measures at its end."""
    experiment = source.experiment
    model, path = _first_run(source, lambda model: levels_file(experiment, model))
    walk = _Walk(chain, path, {"checkpoint": {}, "metric": {}})
    value = {"value": cell.value} if cell.training_runs == 1 else _mean_of(cell)
    found = {**place, **value, "experiment": experiment.name, "model": model}
    term = "bits" if place["column"] == "bound" else place["column"]
    code = ("from edm.training.bound import bound; from edm.training.curves import read_curves; "
            f"print(bound(read_curves({path!r})['after'], {experiment.models[model].sigma_data}).{term})")  # fmt: skip
    return walk.finished(found, [], "") | {"measure_again": [shlex.join(["python", "-c", code])]}


def _first_run(source: Source, file: Callable[[str], str]) -> tuple[str, str]:
    """The first training run of a model whose file is there, as the table has it, and that file."""
    files = {one.model: file(one.model) for one in source.training_runs()}
    return next((model, path) for model, path in files.items() if os.path.exists(path))


def _of_study(chain: Chain, place: dict[str, Any], cell: Cell, source: Source) -> dict[str, Any]:
    experiment, model, study = source.experiment, source.model, source.name
    path = analysis_file(experiment, model, study)
    walk = _Walk(chain, path, {"checkpoint": {}, "metric": {}})
    found = {**place, "value": cell.value, "experiment": experiment.name, "model": model, "study": study}
    kind = experiment.analyses[study].kind
    code = f"from edm.analysis.studies import read_numbers; print(read_numbers({path!r}, {kind!r})[{source.text!r}])"
    return walk.finished(found, [], "") | {"measure_again": [shlex.join(["python", "-c", code])]}


def _named(sampler: SamplerConfig) -> dict[str, Any]:
    """The main settings of a sampler, and those that differ from the defaults."""
    looked_for = {"solver": sampler.solver} | ({} if sampler.nfe is None else {"num_steps": sampler.num_steps})
    return looked_for | sampler.changes()


def _of_measurement(chain: Chain, place: dict[str, Any], cell: Cell, source: Source) -> dict[str, Any]:
    m, experiment = cell.measured, source.experiment
    if m is None:
        raise UserError(f"{place['table']}, {place['row']}, {place['column']}: {_why_empty(cell, source)}")
    evaluation = next(e for e in experiment.evaluations_of(m.model, m.grid)
                      if (m.point, m.repeat) in [(point.id, repeat) for point, repeat in e.draws])  # fmt: skip
    path = evaluation_file(evaluation)
    walk = _Walk(chain, path, read_results(path))
    found = {**place, "metric": m.label, "value": m.distance, "nfe": m.nfe, **_shown_nfe(cell, m),
             "experiment": experiment.name, "model": m.model, "grid": m.grid, "point": m.point, "repeat": m.repeat,
             **_mean_of(cell), "lowest_of": _candidates(experiment, m), "images": m.images,
             "seeds": [m.first_seed, m.first_seed + m.images - 1],
             "sampler": _named(SamplerConfig.from_dict(m.sampler)), **walk.run(m.run)}  # fmt: skip
    job = chain.makers[walk.path]
    again = ["evaluate", job.one("model"), AGAIN, "--experiment", experiment.name, "--model", m.model,
             "--evaluation", evaluation.name, *measuring_options(job)]  # fmt: skip
    number = next(i for i, row in enumerate(walk.record["points"]) if (row["id"], row["repeat"]) == (m.point, m.repeat))
    return walk.finished(found, again, f"['points'][{number}]['distance']")


def _shown_nfe(cell: Cell, measured: Measurement) -> dict[str, str]:
    """The NFE in the table, if it belongs to another setting, whose distance is nearly as low."""
    if cell.nfe in (None, measured.nfe):
        return {}
    return {"nfe_shown": f"{cell.nfe}, of the cheapest setting within 3 % of this one"}


def _mean_of(cell: Cell) -> dict[str, str]:
    """The mean in the table, of several training runs, of which the lineage is the first's."""
    if cell.training_runs == 1:
        return {}
    return {"table_shows": f"the mean of {cell.training_runs} training runs; this is one"}


def _candidates(experiment: Experiment, measured: Measurement) -> str:
    points, repeats = len(experiment.grids[measured.grid].points[measured.model]), experiment.sampling.repeats
    return f"{points} setting{'s' * (points > 1)}" + (f", {repeats} repeats each" if repeats > 1 else "")


class _Walk:
    """The steps behind a results file, by path, in the order of the traversal.

    record: the content of the file, which names its model and its references.
    """

    def __init__(self, chain: Chain, path: str, record: dict[str, Any]):
        self.chain, self.provenance, self.path, self.record = chain, Provenance(chain), path, record
        self.steps: dict[str, dict[str, Any]] = {}
        self._visit(path, self.provenance.hashes.of(path), None)

    def run(self, key: str | None) -> dict[str, str]:
        """The key of a run in MLflow, and its id if the store answers at once."""
        found = run_id(self.chain.params.tracking_uri, key) if key else None
        return ({"mlflow_key": key} if key else {}) | ({"mlflow_run": found} if found else {})

    def finished(self, cell: dict[str, Any], command: list[str], place: str) -> dict[str, Any]:
        """The whole lineage. command: measures again; place: of the number in its output."""
        top, sidecar = self.steps[self.path], self.provenance.sidecar(self.chain.makers[self.path])
        settings = sidecar["specification"].get("settings") if sidecar else None
        # With the digest of the original settings, the command rejects other settings.
        expect = settings if sidecar else self.chain.specification(self.chain.makers[self.path])
        words = ["edm", "launch", "--", *command, "--expect", digest(expect), *_params_option(self.chain.params)]
        show = f"python -c \"import json; print(json.load(open('{AGAIN}')){place})\""
        commit, make = top.get("commit"), f"snakemake {shlex.quote(self.path)}"
        apply = f" && git apply {shlex.quote(top['changes'])}" if "changes" in top else ""
        again = [f"git checkout {commit}{apply} && {make}"] if commit else []
        if commit and os.path.exists("dvc.lock"):
            again.append(f"git checkout {commit} && dvc pull{apply} && {make}")
        self.provenance.hashes.save()
        return {"cell": cell, "steps": list(self.steps.values()),
                "measure_again": [shlex.join(words), show],
                "make_again": again, "cautions": self._cautions(top)}  # fmt: skip

    def _visit(self, path: str, used: str | None, user: Job | None) -> None:
        """Adds the step that made a file, and the steps before it. used: the hash of the file that ``user`` read."""
        job = self.chain.makers.get(path)
        if path not in self.steps:
            made_here = job is not None and job.rule != "download"
            entry = self._step(path, job) if job is not None and made_here else self._outside(path, used, user)
            self.steps[path] = entry
            for source in entry.get("from", ()):
                self._visit(source["file"], source["sha256"], job)
        entry = self.steps[path]
        if used is not None and entry["sha256"] not in (None, used):
            what = "the file that is here" if user is None else f"what {user.name} used"
            entry.setdefault("unknown", f"{what} is another file, sha256 {used}: how that was made is not recorded")

    def _step(self, path: str, job: Job) -> dict[str, Any]:
        sidecar = self.provenance.sidecar(job)
        entry: dict[str, Any] = {"file": path, "step": job.name}
        if sidecar is None:
            return entry | {"sha256": self.provenance.hashes.of(path)} | self._untold(path, job)
        entry["sha256"] = sidecar["outputs"].get(path)
        entry |= {key: sidecar[key] for key in (*ORIGIN, "adopted") if key in sidecar}
        if "created" not in sidecar:
            entry["unknown"] = "it was adopted: when, where and by which code it was made is not recorded"
        settings = sidecar["specification"].get("settings")
        if isinstance(settings, dict):
            entry["settings"] = {key: value for key, value in settings.items() if key not in ("points", "repeats")}
        if used := sidecar.get("plugins"):
            hashes = sidecar["specification"].get("plugins") or {}
            entry["plugins"] = {part: f"{file}, sha256 {hashes.get(part)}" for part, file in used.items()}
        entry |= self._details(path, job, entry, sidecar)
        stale = self.provenance.why_stale(job)
        entry["now"] = f"stale: {stale}" if stale else "fresh" if os.path.exists(path) else "fresh; not here"
        entry["from"] = [{"file": name, "sha256": content} for name, content in sidecar["inputs"].items()]
        return entry

    def _untold(self, path: str, job: Job) -> dict[str, Any]:
        """A step without a sidecar: the content of its own file, and its inputs by params.yaml."""
        sidecar = sidecar_file(job)
        state = "cannot be read" if os.path.exists(sidecar) else "is not there"
        unknown = f"no record of how it was made: {sidecar} {state}"
        inputs: dict[str, str | None] = dict.fromkeys(job.files)
        if path != self.path or job.rule in ("train", "analyse"):
            return {"unknown": unknown, "from": [{"file": name, "sha256": None} for name in inputs]}
        inputs[job.one("model")] = self.record["checkpoint"]["sha256"]
        for reference in job.inputs.get("references", ())[:1]:
            inputs[reference] = self.record["metric"].get("reference_sha256")
        own = {key: self.record[key] for key in ("commit", "dirty") if self.record.get(key)}
        return {"unknown": f"{unknown}; commit and hashes are those that the file itself names", **own,
                "from": [{"file": name, "sha256": content} for name, content in inputs.items()]}  # fmt: skip

    def _outside(self, path: str, used: str | None, user: Job | None) -> dict[str, Any]:
        """A file without a step that makes it."""
        if user is None or path not in self.chain.raw_sources(user):
            return {"file": path, "sha256": used, "unknown": "params.yaml no longer has a step that makes it"}
        entry = self.chain.params.downloads.get(path, {})
        source = entry.get("url") or entry.get("note")
        return {"file": path, "sha256": used, "source": source or "outside the chain"}

    def _details(self, path: str, job: Job, entry: dict[str, Any], sidecar: dict[str, Any]) -> dict[str, Any]:
        """The fields of a kind of step beside its settings."""
        seen, metric = self._checkpoint(entry["sha256"]), self.record["metric"]
        images = {"images_seen": seen["images"]} if "images" in seen else {}
        if job.rule == "train":
            seed = entry.get("settings", {}).get("seed", TrainingConfig.seed)
            return {"seed": seed, **images, **self.run("/".join(job.key))}
        if job.rule == "prepare" and not sidecar["inputs"]:
            return {"raw_data": "no file: it comes with the packages under versions"}
        if job.rule == "published":
            name = self.chain.published_file(*job.key)
            catalogued = (
                {"where": PUBLISHED[name].where, "licence": PUBLISHED[name].licence} if name in PUBLISHED else {}
            )
            told: dict[str, Any] = {key: seen[key] for key in ("source", "source_sha256", "licence") if key in seen}
            return {"published_as": name, **catalogued, **told}
        if job.rule == "choose":
            return {**self._choice(job, sidecar), **images, **self.run(f"{'/'.join(job.key)}/choice")}
        if job.rule == "search":
            own = path == self.path
            record = self.record if own else self._of_hash(path, entry["sha256"], read_search)
            found = {key: record[key] for key in ("settings", "value", "evaluations", "converged") if key in record}
            return {f"found_{key}": value for key, value in found.items()} | self.run(record.get("run"))
        if job.rule == "evaluate":
            extractor = {"features": metric["description"], "weights_sha256": metric.get("weights_sha256")}
            return {key: value for key, value in extractor.items() if value}
        if job.rule == "reference" and metric.get("reference_sha256") == entry["sha256"]:
            return {"reference_images": metric.get("reference_images")}
        return {}

    def _checkpoint(self, sha256: str | None) -> dict[str, Any]:
        """The fields of the results file about its model, if the model has this hash."""
        return self.record["checkpoint"] if self.record["checkpoint"].get("sha256") == sha256 else {}

    def _choice(self, job: Job, sidecar: dict[str, Any]) -> dict[str, Any]:
        path = choice_file(*job.key)
        choice = self._of_hash(path, sidecar["outputs"].get(path), read_choice)
        if not choice:
            return {"chosen": f"not known: {path} is not there, or another one"}
        measured = choice["cheap"] | (choice.get("full") or {})
        kinds = dict.fromkeys("averages" if name.startswith("ema-") else "snapshots" for name in measured)
        return {
            "chosen": f"{choice['best']} of {len(measured)} {' and '.join(kinds)}",
            "chosen_by": f"{choice['metric']['label']} {choice['value']!r} of {choice['confirm_images']} images",
        }

    def _of_hash(self, path: str, sha256: str | None, read: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """The content of a file if it has that hash; else empty."""
        return read(path) if sha256 is not None and self.provenance.hashes.of(path) == sha256 else {}

    def _cautions(self, top: dict[str, Any]) -> list[str]:
        """The reasons why the commands may not give this number."""
        found = []
        for source in top["from"]:
            content = self.provenance.hashes.of(source["file"])
            if content is None:
                found.append(f"{source['file']} is missing: restore it (dvc pull) before you measure again")
            elif source["sha256"] not in (None, content):
                found.append(f"{source['file']} is not the file that was used: measuring again gives another number")
        if top.get("now", "").startswith("stale: changed"):
            found.append(f"params.yaml or the code has changed since ({top['now']})")
        if not top.get("commit"):
            found.append("the commit is not recorded, so no command can make it again")
        dirty = [step for step in self.steps.values() if step.get("dirty") == "true"]
        if dirty:
            found.append(f"made with changes that were not committed: {', '.join(step['step'] for step in dirty)}")
        files = [file for file in dict.fromkeys(step.get("changes") for step in dirty) if file is not None]
        if kept := [file for file in files if os.path.exists(file)]:
            found.append(f"copy these changes into the clone: {', '.join(kept)}; their first lines say what they lack")
        if lost := [file for file in files if file not in kept]:
            found.append(f"the file of these changes is missing: {', '.join(lost)}")
        commits = dict.fromkeys(step["commit"] for step in self.steps.values() if step.get("commit"))
        if len(commits) > 1:
            found.append(f"its steps ran at {len(commits)} commits; the commands name that of the last step")
        unknown = [step["file"] for step in self.steps.values() if "unknown" in step]
        if unknown:
            found.append(f"incomplete records: {', '.join(unknown)}")
        return found


def _params_option(params: Params) -> list[str]:
    return [] if params.path == "params.yaml" else ["--params", params.path]
