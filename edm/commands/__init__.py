"""The commands: each function takes the parsed arguments. A command imports heavy modules only when it needs them.

=============  =========================================================
data.py        prepare, features, fid-ref, download, made-up
models.py      train, import, export
images.py      sample, merge, fid
studies.py     evaluate, choose, search, analyse: the workflow's steps on a model
reports.py     tables, figures, plan, bench, check
tracking.py    track sync
common.py      options, argument types and helpers of all commands
=============  =========================================================
"""

#: Files of commands, in the order of `edm --help`. Each has a function ``add``, which adds its commands.
FILES = ("data", "advising", "launching", "models", "images", "likelihood", "solvers", "studies", "reports", "tracking",
         "watching")  # fmt: skip
