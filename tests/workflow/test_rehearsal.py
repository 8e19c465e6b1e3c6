"""The paper's report as a DAG, and a part of its rehearsal on made-up data through the real rules."""

import re
import shutil
from collections import Counter
from pathlib import Path

import forking
import pytest

from edm import params
from edm.chain.jobs import Chain

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


def snakemake(folder, *words):
    command = ["snakemake", "--snakefile", ROOT / "workflow" / "Snakefile", "--cores", "2", *words]
    return forking.run(command, folder, timeout=1500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place without any dataset; the rehearsal's pre-trained models are fixtures of the tests."""
    folder = tmp_path_factory.mktemp("rehearsal")
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "tests" / "fixtures" / "checkpoints", folder / "tests" / "fixtures" / "checkpoints")
    return folder


def jobs_by_rule(text):
    """The table "Job stats" of a dry run, under the names of the chain's rules."""
    table = re.search(r"^job +count\n[- ]+\n(.*?)^total +(\d+)", text, flags=re.M | re.S)
    counts = Counter()
    for line in table[1].splitlines():
        name, count = line.split()
        counts[name.partition("--")[0].replace("-", "_") if "--" in name else name] += int(count)
    return counts


@pytest.mark.parametrize(
    ("report", "evaluations"), [("paper", 1500), ("rehearsal", 50), ("solvers", 213), ("rehearsal-beyond", 28)]
)
def test_the_plan_counts_the_jobs_that_snakemake_would_run(report, evaluations, folder, monkeypatch):
    """Without any dataset present: what is missing is said when a job needs it, not when the DAG is built."""
    done = snakemake(folder, report, "-n", "--quiet", "rules")
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.chdir(folder)  # what is there already is not downloaded
    chain = Chain(params.load(folder / "params.yaml"))
    planned = Counter(job.rule for job in chain.needed(chain.targets(report)))
    assert jobs_by_rule(done.stdout + done.stderr) == planned + Counter({report: 1})
    assert planned["evaluate"] >= evaluations


def test_one_evaluation_of_the_paper_is_one_job(folder):
    chain = Chain(params.load(folder / "params.yaml"))
    evaluations = [job for job in chain.needed(chain.targets("paper")) if job.rule == "evaluate"]
    for job in evaluations:
        experiment, model, name = job.key
        assert len(chain.experiments[experiment].evaluation(model, name).draws) == 1


def test_a_part_of_the_rehearsal_runs_through_every_kind_of_rule(folder):
    """Made-up ImageNet: training, choice of a snapshot, import, search, settings from it, sheets, studies, report.

    Samplers at few evaluations are measured on a stand-in with the layout of EDM's published checkpoints.
    """
    targets = [
        *(f"results/rehearsal/tables/{table}.html" for table in ("imagenet", "table5", "table7", "table8")),
        *(f"results/rehearsal/figures/{figure}.svg" for figure in ("figure3", "figure5c", "figure7", "figure14b")),
        "results/rehearsal-imagenet/distances/adm-published/stochastic-plain.json",
        "results/rehearsal-ffhq/distances/ve-F/nfe.json",
        "results/rehearsal-solvers/tables/tableS1c.html",
        "results/rehearsal-solvers/figures/figureS1c.svg",
        "results/rehearsal-beyond/figures/figureG1.svg",
        "results/rehearsal-beyond/tables/tableG1.html",
        "results/rehearsal-beyond/distances/vp-F@ema-0.1/widths.json",
        "results/rehearsal-beyond/likelihoods/vp-F/test.json",
    ]
    done = snakemake(folder, *targets)
    assert done.returncode == 0, done.stderr[-4000:]
    logs = "".join(log.read_text() for log in (folder / ".snakemake" / "log").glob("*.log"))
    ran = {re.sub("(_rehearsal|--).*", "", rule) for rule in re.findall(r"\(Rule: ([\w-]+)\)", logs)}
    assert ran >= {"made-up", "prepare", "reference", "train", "choose", "average", "published", "evaluate", "search",
                   "likelihood", "sample", "analyse", "table", "figure"}  # fmt: skip
    assert all((folder / target).stat().st_size > 0 for target in targets)


def test_a_dataset_that_nobody_can_fetch_is_asked_for_in_one_line(folder):
    done = snakemake(folder, "data/ffhq.zip")
    text = done.stdout + done.stderr
    assert done.returncode != 0 and "downloads/images1024x1024" in text and "Traceback" not in text


def test_what_can_be_fetched_is_a_job_until_it_is_there(folder):
    """MNIST's two files are downloaded where they are missing; put there by hand, no rule replaces them."""
    planned = snakemake(folder, "-n", "data/mnist.zip")
    assert (planned.stdout + planned.stderr).count("Download downloads/mnist/train-") == 2
    for name in ("images-idx3", "labels-idx1"):
        (folder / "downloads" / "mnist").mkdir(parents=True, exist_ok=True)
        (folder / "downloads" / "mnist" / f"train-{name}-ubyte.gz").write_bytes(b"by hand")
    planned = snakemake(folder, "-n", "data/mnist.zip")
    text = planned.stdout + planned.stderr
    assert planned.returncode == 0 and "Download" not in text and "Prepare mnist" in text
