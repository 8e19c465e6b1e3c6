# What `snakemake --report` shows: tables, figures and pages on how they were made, each with its caption.
from snakemake.persistence import RECORD_FORMAT_VERSION, MetadataRecord, PersistenceBase

from edm.report.about import maker
from edm.report.captions import Captions

# Captions are templates, and `config` is what they see.
CAPTIONS = config["captions"] = Captions(CHAIN)


def shown(path, category, kind):
    """An output that the page shows under a category. One label: of two, Snakemake's page would make switches."""
    caption = f"../report/{kind}.rst"
    if kind in paths.ABOUT:
        labels = {"page": kind.capitalize()}
    else:
        labels = lambda w: {kind: CAPTIONS.title(w.report, w[kind])}
    return report(path, category=category, subcategory="{report}", labels=labels, caption=caption)


def told(path):
    """Snakemake's own record of the job behind a file, for its page of statistics: it keeps none, the sidecars do."""
    done = maker(CHAIN, path)
    if done is None:
        return None
    known = {"rule": done.rule, "job_hash": hash(done.name), "record_format_version": RECORD_FORMAT_VERSION}
    return MetadataRecord(**known, starttime=done.ended - done.seconds, endtime=done.ended)


if any(word.partition("=")[0] == "--report" for word in sys.argv):
    PersistenceBase.metadata = lambda self, target: told(str(target))
