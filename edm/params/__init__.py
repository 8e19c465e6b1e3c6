"""params.yaml: read, checked, and resolved into configurations, sampler grids, tables and figures. Free of torch.

===============  =====================================================================
reading.py       the file: YAML, the schema, mistakes in a person's words
resolving.py     what the file says → what is run
experiment.py    what is run: models, grids, searches, sheets, analyses, reports
layouts.py       what the file says → what each table and figure shows
sources.py       what they show: labels, published numbers, sources
descriptions.py  configurations in the words of Tables 7 and 8
paper.py         the paper's numbers, read from paper.yaml
catalogue.py     the published checkpoints
===============  =====================================================================
"""

from edm.params.experiment import (
    Analysis,
    Choice,
    Evaluation,
    Experiment,
    Grid,
    Point,
    Report,
    Sampling,
    Search,
    Sheet,
    Training,
    check_spec,
)
from edm.params.reading import Params, load, schema

__all__ = ["Analysis", "Choice", "Evaluation", "Experiment", "Grid", "Params", "Point", "Report", "Sampling",
           "Search", "Sheet", "Training", "check_spec", "load", "schema"]  # fmt: skip
