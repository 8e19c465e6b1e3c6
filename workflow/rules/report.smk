# What `snakemake --report` shows: tables, figures and pages on how they were made, each with its caption.
from datetime import datetime

from snakemake.persistence import RECORD_FORMAT_VERSION, MetadataRecord, PersistenceBase

from edm.provenance import read_sidecar, sidecar_file
from edm.report.captions import Captions

# Captions are templates, and `config` is what they see.
CAPTIONS = config["captions"] = Captions(CHAIN)


def shown(path, category, kind):
    """An output that the page shows under a category. One label: of two, Snakemake's page would make switches."""
    caption = f"../report/{kind}.rst"
    if kind in files.ABOUT:
        labels = {"page": kind.capitalize()}
    else:
        labels = lambda w: {kind: CAPTIONS.title(w.report, w[kind])}
    return report(path, category=category, subcategory="{report}", labels=labels, caption=caption)


def told(path):
    """Snakemake's own record of a file's job, for its page of statistics: from the sidecar, since it keeps none here."""
    job = CHAIN.makers.get(path)
    if job is None or job.rule == "download":
        return None
    sidecar = read_sidecar(sidecar_file(job))
    if sidecar is None:
        return None
    end = datetime.fromisoformat(sidecar["created"]).timestamp()
    times = dict(starttime=end - sidecar["seconds"], endtime=end)
    known = {"rule": job.rule, "job_hash": hash(job.name), "record_format_version": RECORD_FORMAT_VERSION}
    return MetadataRecord(**known, **times)


if any(word.partition("=")[0] == "--report" for word in sys.argv):
    PersistenceBase.metadata = lambda self, target: told(str(target))
