"""What the commands do. Each takes the parsed arguments; heavy modules are imported where a command needs them.

=============  =========================================================
data.py        prepare, features, fid-ref, download, made-up
models.py      train, import, export
images.py      sample, merge, fid
studies.py     evaluate, choose, search, analyse: what the workflow asks of a model
reports.py     tables, figures, plan, bench, check
tracking.py    track sync
common.py      what they share
=============  =========================================================
"""
