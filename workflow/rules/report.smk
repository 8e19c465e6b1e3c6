# The content of `snakemake --report`: tables, figures and provenance pages, each with its caption.
from snakemake.logging import logger

from edm.report.captions import Captions

# Captions are templates, which can read `config`.
CAPTIONS = config["captions"] = Captions(CHAIN)


def shown(path, category, kind):
    """An output that the page shows under a category. It has one label: for two, Snakemake's page adds switches."""
    caption = f"../report/{kind}.rst"
    if kind in paths.ABOUT:
        labels = {"page": kind.capitalize()}
    else:
        # A word joiner after each brace: Snakemake would take {word} in a title for a wildcard.
        labels = lambda w: {kind: CAPTIONS.title(w.report, w[kind]).replace("{", "{\u2060")}
    return report(path, category=category, subcategory="{report}", labels=labels, caption=caption)


# Snakemake keeps no metadata here (see the default profile) and would warn about every file. The report's page
# "Runtime" lists the jobs instead.
if any(word.partition("=")[0] == "--report" for word in sys.argv):
    logger.addFilter(lambda record: not record.getMessage().startswith("Missing metadata for file"))
