"""The commands: each function takes the parsed arguments. A command imports heavy modules only when it needs them.

=============  =========================================================
data.py        prepare, download, made-up, features, fid-ref
advising.py    advise
launching.py   launch, adopt, clean, digests: steps of the workflow
models.py      train, import, average, export
images.py      sample, merge, fid
likelihood.py  likelihood
solvers.py     orders
studies.py     evaluate, choose, search, sheet, analyse: the workflow's steps on a model
reports.py     tables, figures, metrics, about, trace, compare, crate, plan, bench, check
tracking.py    track
watching.py    watch
common.py      options, argument types and helpers of all commands
=============  =========================================================
"""

#: Files of commands, in the order of `edm --help`. Each has a function ``add``, which adds its commands.
FILES = ("data", "advising", "launching", "models", "images", "likelihood", "solvers", "studies", "reports", "tracking",
         "watching")  # fmt: skip
