"""params.yaml: read, checked, and resolved into configurations, sampler grids, tables and figures. Free of torch.

=============  =======================================================================
reading.py     the file: YAML, the schema, mistakes in a person's words
resolving.py   what the file says → what is run
experiment.py  what is run: models, grids, searches, sheets, analyses, reports
=============  =======================================================================
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
