"""Records what each job did, without slowing or failing the job.

A job appends to its own JSONL journal (``Journal``) and imports no tracking library. ``edm.tracking.sync.sync`` copies
journals to MLflow later, in one process; it is not imported here, because importing MLflow takes seconds.
"""

from edm.tracking.changes import uncommitted
from edm.tracking.environment import description, environment_tags, origin
from edm.tracking.journal import Artifact, Journal, Point, Run, RunRecord, read_journal
from edm.tracking.system import SystemMetrics

DEFAULT_URI = "sqlite:///mlruns/mlflow.db"

__all__ = [
    "DEFAULT_URI",
    "Artifact",
    "Journal",
    "Point",
    "Run",
    "RunRecord",
    "SystemMetrics",
    "description",
    "environment_tags",
    "origin",
    "read_journal",
    "uncommitted",
]
