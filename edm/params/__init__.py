"""params.yaml: read, checked, and resolved into configurations, sampler grids, tables and figures. Free of torch.

===============  =====================================================================
reading.py       the file, its entries that extend others, checks between its sections
strict_yaml.py   YAML as plain data of bounded size
validating.py    the schema, and its errors as readable messages
resolving.py     entries of the file → experiments
experiment.py    experiments: models, grids, searches, sheets, analyses, reports
studies.py       what is known of each study before it runs
layouts.py       entries of the file → layouts of tables and figures
sources.py       layouts: labels, published numbers, sources
descriptions.py  configurations as the rows of Tables 7 and 8
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
from edm.params.reading import Params, load, state_valid
from edm.params.validating import schema

__all__ = ["Analysis", "Choice", "Evaluation", "Experiment", "Grid", "Params", "Point", "Report", "Sampling",
           "Search", "Sheet", "Training", "check_spec", "load", "schema", "state_valid"]  # fmt: skip
