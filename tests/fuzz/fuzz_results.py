"""Damaged results, choices, searches, histories, levels, studies, sidecars, caches and the other files that come back.

Each input damages one file of a small chain (:mod:`documents`) and then calls what reads it: tables, figures, trace,
plan, provenance pages and captions, resumed jobs. A damaged value must be refused or ignored, never shown.
"""

import functools
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import documents
import door
import mutations
import yaml

from edm import params
from edm.chain import throughput
from edm.chain.jobs import Chain
from edm.chain.plan import as_text, make_plan
from edm.chain.provenance import Provenance, start
from edm.chain.remaking import set_aside
from edm.chain.reuse import measured_before
from edm.chain.sidecars import sidecar_file
from edm.cluster.processes import ALONE
from edm.errors import UserError
from edm.evaluation.finished import Finished
from edm.evaluation.history import SearchHistory
from edm.evaluation.records import MEASURED
from edm.evaluation.shards import _header
from edm.files.download import pin
from edm.files.hashes import LOCAL, Hashes, digest
from edm.report.about import write_about
from edm.report.captions import Captions
from edm.report.figures import Places, write_figure
from edm.report.lineage import trace
from edm.report.lineage_text import as_text as lineage_text
from edm.report.plots import write_plots
from edm.report.results import Results
from edm.report.tables import build_table, write_metrics, write_table
from edm.training.log import TrainingLog

OUT, RUNS, MODELS = Path("results"), Path("runs"), Path("models")


class Readers:
    """What reads the files of a chain. Each method raises UserError or ends well."""

    def __init__(self, chain: Chain):
        self.chain, self.params, self.report = chain, chain.params, chain.reports["tiny"]
        raw = yaml.safe_load(documents.PARAMS)
        raw["experiments"]["tiny"]["sampling"]["one_job_per"] = "point"  # takes what the jobs of grids have measured
        Path("points.yaml").write_text(yaml.safe_dump(raw))
        self.points = Chain(params.load("points.yaml"))

    def tables(self) -> None:
        for name in self.report.tables:
            write_table(self.report, name, OUT, RUNS)
            table = build_table(self.report, name, Results(OUT, RUNS))
            for cells in table.rows.values():
                assert all(0 <= m.distance < 1e30 and m.nfe >= 0 for cell in cells if (m := cell.measured)), table
        write_metrics(self.report, OUT, RUNS)
        write_plots(self.report, OUT, RUNS, MODELS)

    def trace(self) -> None:
        for table, row in (("tiny/table4", "Two"), ("tiny/table2", "A"), ("tiny/table5", "S_churn")):
            found = trace(self.params, table, row)
            json.dumps(found, allow_nan=False)
            assert lineage_text(found).replace("\n", "").isprintable()

    def plan(self) -> None:
        as_text(make_plan(self.params, "tiny", documents.RATES, False), 8)
        provenance = Provenance(self.chain)
        provenance.to_run(self.chain.targets("tiny"))
        list(set_aside(provenance, ()))
        for name in ("evaluate tiny/vp-A/churn", "track tiny"):
            start(self.chain, name)

    def pages(self) -> None:
        write_about(self.chain, self.report, OUT)
        captions = Captions(self.chain)
        captions.front([f"results/tiny/tables/{name}.md" for name in self.report.tables])
        for name in self.report.tables:
            captions.table("tiny", name)
        for name in self.report.figures:
            captions.figure("tiny", name)

    def reuse(self) -> None:
        for name, job in self.points.by_name.items():
            if name.startswith("evaluate tiny/vp-A/churn/"):
                measured_before(self.points, job)

    def figure(self, name: str) -> Callable[[], Any]:
        return lambda: write_figure(self.report, name, Places(OUT, RUNS, Path("data"), MODELS))

    def delivery(self) -> None:
        Provenance(self.chain).why_stale(self.chain.by_name["track tiny"])

    def history(self) -> None:
        history = SearchHistory(documents.HISTORY, documents.OF)
        row = history.measure({"candidate": "a", "stage": "cheap"}, lambda: 7.5)
        assert row["value"] is None or 0 <= row["value"] < 1e30, row

    def finished(self) -> None:
        found = Finished(documents.FINISHED, documents.OF, ALONE, each=MEASURED).take("one@0", lambda: documents.RESULT)
        assert 0 <= found["distance"] < 1e30 and type(found["nfe"]) is int, found

    def training(self) -> None:
        folder = documents.training_folder()
        folder.is_finished()
        folder.require_own()

    def log(self) -> None:
        log = TrainingLog(documents.RUN / "log.jsonl", 200, True)
        log.write({"images": 300, "loss": 0.5})
        log.sync()
        curve = log.curve("loss")
        assert len(curve["images"]) == len(curve["loss"])
        json.dumps(curve, allow_nan=False)

    def shard(self) -> None:
        for value in _header(documents.SHARD)["of"].values():
            digest(value)

    def hashes(self) -> None:
        found = Hashes(LOCAL / "hashes.json")
        assert found.of("params.yaml") == Hashes(None).of("params.yaml")
        found.save()

    def rates(self) -> None:
        for device in (None, "GPU"):
            rate = throughput.Throughput.load(documents.RATES).training(documents.CONFIG, device)
            assert 0 < rate.per_second < 1e30, rate
        throughput.record(documents.RATES, throughput.Measurement(
            "m" * 12, 10**6, "GPU 9", "cuda", "fp32", 9, 1.0, 2.0, "2026-01-01", "made up"))  # fmt: skip

    def pins(self) -> None:
        pin(documents.PINS, "downloads/b.pkl", "b" * 64)


def formats(readers: Readers) -> list[tuple[str, Path, mutations.Damage, list[Callable[[], Any]]]]:
    """(name, file, the way to damage it, its readers) of every format."""
    chain, run, of = readers.chain, documents.RUN, []
    results = [readers.tables, readers.trace, readers.reuse, readers.pages]
    kinds: dict[str, list[Callable[[], Any]]] = {
        "evaluate": [*results, readers.figure("curve")], "search": [readers.tables, readers.trace],
        "choose": [readers.trace], "train": [readers.tables, readers.pages, readers.figure("levels")],
        "track": [readers.delivery], "advise": [readers.pages],
    }  # fmt: skip
    for job in chain.needed(chain.targets("tiny")):
        for path in map(Path, job.outputs):
            if path.suffix == ".json" and job.rule in kinds and "metrics" not in path.name:
                of.append((job.rule, path, mutations.document, kinds[job.rule]))
        if job.rule in ("sample", "analyse"):
            name = "looks" if job.rule == "sample" else job.key[2]
            of.append((job.rule, Path(job.outputs[0]), mutations.tensor_file, [readers.figure(name)]))
        sidecar = Path(sidecar_file(job))
        of.append((f"sidecar of {job.rule}", sidecar, mutations.document, [readers.plan, readers.trace, readers.pages]))
    return [
        *of,
        ("history", documents.HISTORY, mutations.lines, [readers.history]),
        ("finished", documents.FINISHED, mutations.document, [readers.finished]),
        ("training", run / "training.json", mutations.document, [readers.training]),
        ("log", run / "log.jsonl", mutations.lines, [readers.log]),
        ("shard", documents.SHARD, mutations.tensor_file, [readers.shard]),
        ("hashes", LOCAL / "hashes.json", mutations.document, [readers.hashes]),
        ("rates", documents.RATES, mutations.document, [readers.rates, readers.plan]),
        ("pins", documents.PINS, mutations.document, [readers.pins]),
    ]


def inputs(count: int, seed: int) -> door.Inputs:
    """Inputs of all formats in turn, each damaged by its own seed, in a folder of its own."""
    folder, before = tempfile.TemporaryDirectory(), Path.cwd()
    readers = Readers(documents.made(Path(folder.name)))
    found = formats(readers)
    contents = {path: path.read_bytes() for _, path, _, _ in found}
    for _, _, _, reads in found:
        read_all(reads)  # whole files are accepted; the memory for imports is not that of an input

    def damaged() -> door.Inputs:
        for number in range(seed, seed + count):
            name, path, damage, reads = found[number % len(found)]
            draw = random.Random(number)
            content = draw.choice(mutations.KINDS) if draw.random() < 0.08 else damage(contents[path], draw)
            for other, whole in contents.items():
                if not other.is_file() or other.stat().st_size != len(whole) or other.read_bytes() != whole:
                    mutations.put(other, whole)
            mutations.put(path, content)
            reads = draw.sample(reads, 1) if draw.random() < 0.7 else reads
            yield f"seed {number} ({name}: {path})", functools.partial(read_all, reads)
        os.chdir(before)
        folder.cleanup()

    return damaged()


def read_all(reads: list[Callable[[], Any]]) -> None:
    """Calls every reader, also after a refusal; raises the first refusal."""
    refused: UserError | None = None
    for read in reads:
        try:
            read()
        except UserError as error:
            refused = refused or error
    if refused:
        raise refused


if __name__ == "__main__":
    sys.exit(door.command(inputs, __doc__))
