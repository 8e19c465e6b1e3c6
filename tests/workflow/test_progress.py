"""What a person reads while Snakemake runs: the lines of the logger plugin `edm`."""

import io
import json
import logging
import re
from types import SimpleNamespace

import pytest
from pretended import FAILING, edit, planned, snakemake
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_edm import LogHandler

SETTINGS = {"printshellcmds": False, "nocolor": True, "quiet": set(), "debug_dag": False, "verbose": False,
            "show_failed_logs": True, "stdout": False, "dryrun": False}  # fmt: skip
COMPLETE = "Complete log(s): /lab/.snakemake/log/x.log"
ELAPSED = "Elapsed time: 0:01:00"


class Told:
    """A handler, fed with records made by hand; ``lines``: what it has printed."""

    def __init__(self, **settings):
        self.handler, self.now = LogHandler(SimpleNamespace(**(SETTINGS | settings)), None), 0.0
        self.handler.stream = io.StringIO()
        self.handler.story.clock = lambda: self.now

    def tell(self, msg="None", level=logging.INFO, **extra):
        record = logging.LogRecord("snakemake.logging", level, "", 0, msg, None, None)
        vars(record).update(extra)
        self.handler.handle(record)

    def begin(self, planned=None, costs=None, **stats):
        if planned:
            self.tell(edm_planned=planned, edm_targets=["all"])
            self.tell(edm_costs=costs or {})
        self.tell("Job stats:\n…", event=LogEvent.RUN_INFO, stats=stats | {"total": sum(stats.values())})

    def start(self, number, text, output=(), log=(), rule="train"):
        self.tell(f"Rule: {rule}", event=LogEvent.JOB_INFO, jobid=number, rule_name=rule, rule_msg=text,
                  output=list(output), log=list(log), reason="…", shellcmd="edm …")  # fmt: skip

    def finish(self, number):
        self.tell(f"Finished jobid: {number}", event=LogEvent.JOB_FINISHED, job_id=number)

    def fail(self, number, log, rule="train"):
        self.tell("Error in rule", logging.ERROR, event=LogEvent.JOB_ERROR, jobid=number, rule_name=rule, rule_msg=None,
                  input=[], output=["models/A"], log=[log], conda_env=None, aux={"external_jobid": "17"},
                  indent=False, shellcmd="edm train --experiment digits")  # fmt: skip

    @property
    def lines(self):
        return self.handler.stream.getvalue().splitlines()


@pytest.fixture
def told():
    made = []

    def make(**settings):
        made.append(Told(**settings))
        return made[-1]

    yield make
    for one in made:
        one.handler.close()


PLANNED = {f"models/{model}": ("train", f"train digits/{model}", "changed") for model in "ABC"}
PLANNED |= {"results/digits/tables/t.md": ("table", "table digits/t", "follow a step that runs")}


def test_an_unknown_target_gets_a_line_with_the_nearest_name(told):
    text = (
        "MissingRuleException:\nNo rule to produce flower (if you use input functions make sure that they don't raise "
        "unexpected exceptions)."
    )
    one = told(quiet={"all"}, dryrun=True)
    one.tell(text, logging.ERROR)
    one.tell(edm_unknown=lambda name: f"{name}: no job makes it; did you mean 'flowers'?")
    one.tell(text, logging.ERROR)
    assert one.lines[-1] == "error: flower: no job makes it; did you mean 'flowers'?"
    assert "No rule to produce flower" in "".join(one.lines[:-1])  # from the time before params.yaml is read


def test_each_step_has_its_number_its_duration_and_the_time_left(told, tmp_path):
    one, log = told(), tmp_path / "A" / "train.log"
    log.parent.mkdir()
    one.begin(PLANNED, dict.fromkeys(list(PLANNED)[:3], (2.0, 1000)), train=3, table=1, all=1)
    one.start(1, "Train digits/A", ["models/A"], [str(log)])
    one.now = 25.0
    one.handler._print(one.handler.story.now())
    row = {"images": 500, "loss": 0.5, "images_per_second": 20}
    (log.parent / "log.jsonl").write_text(json.dumps(row))
    one.handler._print(one.handler.story.now())
    one.now = 60.0
    one.finish(1)
    one.start(2, "Train digits/B", ["models/B"], ["none/train.log"])
    one.now = 120.0
    one.finish(2)
    one.start(3, "Train digits/C", ["models/C"], ["none/train.log"])
    one.now = 180.0
    one.finish(3)
    one.start(4, "Table digits t", ["results/digits/tables/t.md"], ["none/t.log"], rule="table")
    one.now = 190.0
    one.finish(4)
    one.start(5, None, rule="all")
    one.finish(5)
    one.tell(COMPLETE)
    one.tell(ELAPSED)
    assert one.lines == [
        "4 steps to run: 3 train, 1 table",
        "[0/4] Train digits/A: starts, 1,000 images",
        "[0/4] running: Train digits/A for 25 s",
        "[0/4] running: Train digits/A 50 %, 500 of 1,000 images, 20 images/s, loss 0.5; about 2 min left",
        "[1/4] Train digits/A: 60 s, 20 images/s, loss 0.5; about 2 min left",
        "[1/4] Train digits/B: starts, 1,000 images",
        "[2/4] Train digits/B: 60 s; about 65 s left",
        "[2/4] Train digits/C: starts, 1,000 images",
        "[3/4] Train digits/C: 60 s; about 5 s left",
        "[4/4] Table digits t: 10 s",
        "Done: 4 steps in 3 min",
        "  Tables: results/digits/tables",
    ]


def test_a_failed_step_is_one_block_with_the_end_of_its_log(told, tmp_path):
    one, log = told(), tmp_path / "train.log"
    lines = "".join(f"line {number}\n" for number in range(50))
    log.write_text(f"error: no data\nerror: no data\n{lines}error: the disk is full\n")  # as of two ranks
    one.begin(PLANNED, train=3, table=1, all=1)
    one.start(1, "Train digits/A", ["models/A"], [str(log)])
    one.now = 7.0
    one.tell(
        "RuleException:\nCalledProcessError in file x, line 3: …", logging.ERROR, event=LogEvent.ERROR, exception="R"
    )
    one.fail(1, str(log))
    one.tell("Trying to restart job 1.")
    one.start(1, "Train digits/A", ["models/A"], [str(log)])
    one.fail(1, str(log))
    one.tell(COMPLETE)
    one.tell(ELAPSED)
    tail = [
        "  | error: no data",
        "  | …",
        *(f"  | line {number}" for number in range(31, 50)),
        "  | error: the disk is full",
    ]
    rest = [f"  log: {log}", "  output: models/A", "  command: edm train --experiment digits", "  external_jobid: 17"]
    assert one.lines[2:] == [
        "FAILED after 7 s: Train digits/A (rule train, job 1)", *tail, *rest,
        "[0/4] Train digits/A: will be tried again",
        "[0/4] Train digits/A: starts again",
        "FAILED after 0 s: Train digits/A (rule train, job 1)", *tail, *rest,
        "Stopped after 7 s: 0 of 4 steps done, 1 failed",
        "  failed: Train digits/A",
        "  The same command continues. Snakemake's log: /lab/.snakemake/log/x.log",
    ]  # fmt: skip


def test_what_snakemake_says_about_itself_gives_way_and_the_rest_does_not(told):
    one = told()
    noise = ("None", "Select jobs to execute...", "Using shell: /bin/bash", "Provided cores: 2",
             "52 jobs have missing provenance/metadata so that it in part cannot be used to trigger re-runs.",
             "Removing temporary output runs/x.")  # fmt: skip
    for text in noise:
        one.tell(text)
    one.tell("debugging", logging.DEBUG)
    one.tell("Unlocked working directory.")
    one.tell("Falling back to greedy scheduler", logging.WARNING)
    one.tell("WorkflowError:\nparams.yaml: unknown key", logging.ERROR, event=LogEvent.ERROR, exception="WorkflowError")
    assert one.lines == ["Unlocked working directory.", "Falling back to greedy scheduler", "WorkflowError:",
                         "params.yaml: unknown key"]  # fmt: skip
    wordy = told(verbose=True)
    for text in noise:
        wordy.tell(text)
    assert wordy.lines == list(noise[1:])


@pytest.mark.parametrize(("quiet", "seen"), [
    ({"progress"}, ["FAILED after 0 s: Train digits/A (rule train, job 1)"]),
    ({"all"}, []),
])  # fmt: skip
def test_quiet_hides_progress_and_no_error(told, quiet, seen):
    from snakemake.settings.enums import Quietness

    one = told(quiet={Quietness.parse_choice(what) for what in quiet})
    one.begin(PLANNED, train=3, all=1)
    one.start(1, "Train digits/A", ["models/A"], [])
    one.fail(1, "none/train.log")
    one.tell(ELAPSED)
    assert one.lines[:1] == seen


def test_steps_of_a_cluster_are_submitted(told):
    one = told()
    one.tell("Provided remote nodes: 200", event=LogEvent.RESOURCES_INFO, nodes=200)
    one.begin(PLANNED, train=3, table=1, all=1)
    one.start(1, "Train digits/A", ["models/A"], [])
    assert one.lines[-1] == "[0/4] Train digits/A: submitted"


def test_a_reader_who_has_gone_stops_nothing(told):
    one = told()
    one.handler.stream = SimpleNamespace(write=lambda text: (_ for _ in ()).throw(BrokenPipeError))
    one.begin(PLANNED, train=3, all=1)


@pytest.mark.slow
def test_the_lines_of_a_chain_and_of_its_dry_run(folder, monkeypatch):
    """A change of one model. Its table fails: the steps that do not need it continue."""
    edit(lambda raw: raw["experiments"]["tiny"]["ladder"]["B"].update(learning_rate=1.0e-3))
    steps = planned()
    dry = snakemake(folder, "-n").stdout.splitlines()
    assert len([line for line in dry if line.startswith("would run: ")]) == len(steps) == 11
    assert "would run: Train tiny/vp-B" in dry and "total          12" in dry
    assert dry[-1] == "Dry run: 11 steps would run (1 changed, 10 follow a step that runs); nothing was run"
    monkeypatch.setenv(FAILING, "table tiny/table2")
    done = snakemake(folder, "--keep-going")
    assert done.returncode != 0 and "\x1b" not in done.stderr and "\r" not in done.stderr
    lines = done.stderr.splitlines()
    begun = lines.index("train tiny/vp-B: changed: learning_rate") + 1
    assert re.fullmatch(r"11 steps to run: 1 train, 1 choose, 2 shard, 1 evaluate, .*", lines[begun])
    assert lines[begun + 1] == "[ 0/11] Train tiny/vp-B: starts, 1,200 images"
    assert re.fullmatch(r"\[ 1/11\] Train tiny/vp-B: \d+ s; about \d+ (s|min) left", lines[begun + 2])
    numbers = [int(number) for number in re.findall(r"^\[ ?(\d+)/11\] .*: \d+ s", done.stderr, flags=re.M)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) in (8, 9)
    block = next(i for i, line in enumerate(lines) if line.startswith("FAILED"))
    assert re.fullmatch(r"FAILED after \d+ s: Table tiny table2 \(rule table, job \d+\)", lines[block])
    assert lines[block + 2] == "  log: runs/tiny/logs/table2.log" and "edm launch --step" in lines[block + 4]
    (stopped,) = (i for i, line in enumerate(lines) if line.startswith("Stopped after "))
    assert lines[stopped].endswith(f": {len(numbers)} of 11 steps done, 1 failed")
    assert lines[stopped + 1] == "  failed: Table tiny table2"
    assert not re.search("Select jobs|provenance/metadata|Provided cores|CalledProcessError", done.stderr)
