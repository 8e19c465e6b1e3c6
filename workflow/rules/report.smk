# What `snakemake --report` shows: tables, figures and pages on how they were made, each with its caption.
from snakemake.logging import logger

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


# Snakemake keeps no account of its jobs here, and would say so of every file: the page on the runtime tells of them.
if any(word.partition("=")[0] == "--report" for word in sys.argv):
    logger.addFilter(lambda record: not record.getMessage().startswith("Missing metadata for file"))
