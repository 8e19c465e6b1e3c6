"""Snakemake's logger plugin ``edm``: lines that a person reads in place of job tables and provenance warnings.

`workflow/profiles/default/config.yaml` activates it (`logger: edm`). Snakemake finds it by the name of this package.
"""

import re
import sys
import threading
from collections.abc import Callable
from logging import DEBUG, WARNING, LogRecord
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_edm.story import Story

#: Messages of Snakemake that say nothing to a user of this chain. `--verbose` shows them.
NOISE = re.compile(
    r"None$|$|Processed \d+ potential jobs|Using shell:|Select jobs to execute|Provided |Rules claiming more threads"
    r"|Conda environments: ignored|Singularity containers: ignored|Group jobs: inactive|Removing temporary output"
    r"|Would remove temporary output|Assuming unrestricted shared filesystem|\d+ jobs have \w+\sprovenance/metadata"
    r"|Some jobs were triggered by provenance|Rules with provenance triggered jobs|Reasons:\n|This was a dry-run"
    r"|Job \d+ has been submitted with SLURM jobid|SLURM run ID: |At least one job did not complete successfully"
    r"|(RuleException|WorkflowError):\n(CalledProcessError in file|At least one job did not complete successfully)"
)
#: Of a target, or of an input, that no rule makes.
UNKNOWN = re.compile(r"MissingRuleException[^\n]*:\nNo rule to produce (.+) \(if you use input functions")
QUIETER = (20.0, 600.0, 0.05)  # seconds between two lines on what runs: at least, at most, share of the time so far


class LogHandler(LogHandlerBase):
    """Prints each of Snakemake's events as the lines of a :class:`Story`; what it does not know, as Snakemake does."""

    def __post_init__(self) -> None:
        from snakemake.logging import DefaultFilter, DefaultFormatter  # imports this package, so not above

        told = self.common_settings
        self.stream = sys.stdout if told.stdout else sys.stderr
        self.quiet = {str(getattr(what, "name", what)).lower() for what in told.quiet or ()}
        self.story, self._shown, self._table = Story(), 0.0, False
        self._over, self._counts = threading.Event(), ""
        self._ticker: threading.Thread | None = None
        self._unknown: Callable[[str], str] | None = None  # what to say of a target that there is not
        self._wanted = DefaultFilter(told.quiet or set(), told.debug_dag, told.verbose, told.dryrun,
                                     told.printshellcmds)  # fmt: skip
        self._own_text = DefaultFormatter(told.quiet, told.show_failed_logs)
        self._announce("Reading params.yaml and the rules")

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def emit(self, record: LogRecord) -> None:
        try:
            self._print(self._lines(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._over.set()
        super().close()

    def _lines(self, record: Any) -> list[str]:
        """The lines of a record. The story learns of all events, also of those that `--quiet` hides."""
        if hasattr(record, "edm_planned"):
            self.story.planned, self.story.targets = record.edm_planned, frozenset(record.edm_targets)
            return []
        if hasattr(record, "edm_costs"):
            self.story.costs = record.edm_costs
            return []
        if hasattr(record, "edm_unknown"):
            self._unknown = record.edm_unknown
            return []
        event = getattr(record, "event", None)
        own = self._of_event(event, record)
        if own is None:
            own = self._of_message(str(record.msg), record)
        if self.common_settings.verbose and record.levelno < WARNING and event is not None:
            own = [*self._as_snakemake(record), *own]
        return [] if "all" in self.quiet and not self.common_settings.dryrun else own

    def _of_event(self, event: str | None, record: Any) -> list[str] | None:
        story, dry = self.story, self.common_settings.dryrun
        match event:
            case LogEvent.RUN_INFO:
                return self._table_once(str(record.msg)) if dry else self._begin(record.stats)
            case LogEvent.JOB_INFO:
                text = record.rule_msg or f"{record.rule_name} {' '.join(record.output)}".strip()
                if dry:
                    lines = story.would_run(record.rule_name, text, record.output)
                    return self._unless("rules", lines)
                return self._unless("progress", story.start(record.jobid, record.rule_name, text, record.output,
                                                            record.log))  # fmt: skip
            case LogEvent.JOB_FINISHED:
                return self._unless("progress", story.finish(record.job_id))
            case LogEvent.JOB_ERROR:
                more = {"message": record.rule_msg, "conda-env": record.conda_env, **record.aux}
                return story.fail(record.jobid, record.rule_name, record.output, record.log, record.shellcmd, more)
            case LogEvent.SHELLCMD:
                command = getattr(record, "shellcmd", None) or getattr(record, "cmd", None)
                return [f"    {command}"] if command and self._wanted.filter(record) else []
            case LogEvent.RESOURCES_INFO:
                story.remote = story.remote or hasattr(record, "nodes")  # Slurm's plugin submits jobs
                return []
            case LogEvent.WORKFLOW_STARTED | LogEvent.JOB_STARTED | LogEvent.PROGRESS:
                return []
        return None

    def _of_message(self, text: str, record: LogRecord) -> list[str]:
        """The lines of a record that is only a text."""
        if text.startswith("Building DAG of jobs"):
            self._announce("Looking for the steps to run, by params.yaml, the data and the records in steps/")
            return []
        if text.startswith("Complete log(s): "):
            return self.story.log(text.partition(": ")[2])
        if text.startswith("Elapsed time: "):
            return self._unless("progress", self.story.end())
        if text.startswith("This was a dry-run"):
            return [*self._table_once(""), *self.story.would_run_all()]
        if found := re.match(r"Trying to restart job (\d+)", text):
            return self.story.again(int(found[1]))
        if self._unknown and (found := UNKNOWN.match(text)):
            return [f"error: {self._unknown(found[1])}"]
        if NOISE.match(text) and not (self.common_settings.verbose and text not in ("", "None")):
            return []
        return self._as_snakemake(record)

    def _as_snakemake(self, record: LogRecord) -> list[str]:
        if record.levelno < WARNING and not self._wanted.filter(record):
            return []
        if record.levelno <= DEBUG and not (self.common_settings.verbose or self.common_settings.debug_dag):
            return []
        text = self._own_text.format(record)
        return [] if text in (None, "", "None") else [text]

    def _unless(self, quiet: str, lines: list[str]) -> list[str]:
        return [] if quiet in self.quiet else lines

    def _table_once(self, table: str) -> list[str]:
        """The counts of a dry run, reported twice: at its end, or at once if no steps are listed."""
        if table:
            self._counts = table
        at_once = "rules" in self.quiet or not table
        if not at_once or self._table:
            return []
        self._table = True
        return [self._counts.strip()]

    def _begin(self, stats: dict[str, int]) -> list[str]:
        lines = self.story.begin(stats)
        if self._ticker is None and "progress" not in self.quiet:
            self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
            self._ticker.start()
        return self._unless("progress", lines)

    def _tick(self) -> None:
        """Prints what runs whenever nothing else has been printed for a while."""
        least, most, share = QUIETER
        while not self._over.wait(5):
            now = self.story.clock()
            if now - self._shown >= min(most, max(least, share * (now - self.story.begun))):
                self.acquire()
                try:
                    self._print(self.story.now())
                finally:
                    self.release()

    def _announce(self, line: str) -> None:
        """What takes a while at the start; never among the results of a dry run."""
        if not self.quiet & {"all", "progress"}:
            print(line, file=sys.stderr, flush=True)

    def _print(self, lines: list[str]) -> None:
        if not lines:
            return
        self._shown = self.story.clock()
        try:
            self.stream.write("".join(f"{line}\n" for line in lines))
            self.stream.flush()
        except (BrokenPipeError, ValueError):
            self._over.set()  # the reader has gone (`snakemake -n | head`)
