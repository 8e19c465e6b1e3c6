"""The files that DVC compares: per stage and name, one small file with the digest of every step's specification.

A stage of dvc.yaml depends on its file, so DVC and Snakemake see the same changes: the file changes exactly when a
step's settings, code number, raw data or an earlier step's specification change.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import yaml

from edm.chain import plugins
from edm.chain.jobs import Chain
from edm.chain.provenance import Provenance, raw
from edm.chain.rules import RULES
from edm.errors import UserError
from edm.files.writing import write_json

FOLDER = Path("steps/digests")


def write_digests(
    chain: Chain, datasets: Iterable[str], experiments: Iterable[str], folder: Path = FOLDER
) -> list[str]:
    """Writes FOLDER/STAGE/NAME.json, step → digest, and removes the files of all other names.

    The stage "data" has a file per dataset, every other stage one per experiment. Returns the raw files and folders
    that decide the digests and that no download provides. Raises UserError for unknown names, and for an experiment
    without the ones whose steps it shares: DVC would not keep their files.
    """
    provenance = Provenance(chain)
    pairs = [("data", name) for name in datasets]
    stages = dict.fromkeys(rule.stage for rule in RULES.values())
    pairs += [(stage, name) for name in experiments for stage in stages if stage != "data"]
    for stage, name in pairs:
        kind = "dataset" if stage == "data" else "experiment"
        if name not in chain.params.raw[f"{kind}s"]:
            raise UserError(f"{name}: params.yaml has no such {kind}; correct `kept` in dvc.yaml")
        for owner in chain.experiments[name].owners if stage != "data" else ():
            if (stage, owner) not in pairs:
                raise UserError(f"{name}: it shares steps of {owner}; add {owner} to `kept` in dvc.yaml")
    found = {pair: {chain.makers[path] for path in chain.steps(*pair)} for pair in pairs}
    digests = {pair: {job.name: provenance.digest(job) for job in jobs} for pair, jobs in found.items()}
    provenance.hashes.save()
    shutil.rmtree(folder, ignore_errors=True)
    for (stage, name), steps in digests.items():
        write_json(folder / stage / f"{name}.json", dict(sorted(steps.items())))
    fetched = {path for path, entry in chain.params.downloads.items() if entry.get("url")}
    used = {path for jobs in found.values() for job in jobs for path in raw(chain, job) if os.path.exists(path)}
    every = [job for jobs in found.values() for job in jobs]
    used |= {path for job in every for path in plugins.files(chain, job).values() if os.path.exists(path)}
    return sorted(used - fetched)


def not_watched(paths: Iterable[str], stages: str | Path = "dvc.yaml") -> list[str]:
    """The paths that the stage `digests` of dvc.yaml does not depend on: DVC would miss their changes."""
    try:
        deps = yaml.safe_load(Path(stages).read_text(encoding="utf-8"))["stages"]["digests"]["deps"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return []  # the user rewrote the stage, or does not use DVC
    return [path for path in paths if not any(f"{path}/".startswith(f"{dep}/") for dep in deps)]
