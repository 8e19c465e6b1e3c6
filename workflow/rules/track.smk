# Journals of all runs → MLflow. Jobs only write journals: tracking cannot delay or fail a training. Nor does a store
# that is away, locked or full fail the chain: the summary says what is to come, and the next run of Snakemake, or any
# `edm track sync`, delivers it.
import json


def again(wildcards):
    """A file that is newer than the last delivery, where that left runs behind."""
    last = f"results/{wildcards.report}/tracking.json"
    try:
        with open(last, encoding="utf-8") as file:
            pending = "reason" in json.load(file)
    except (OSError, ValueError):
        pending = False
    return [renew_marker([last])] if pending and workflow.is_main_process else []


rule track:
    message:
        "MLflow: runs of {wildcards.report}"
    input:
        unpack(made_from("track", "report")),
        again=again,
    output:
        "results/{report}/tracking.json",
    params:
        step=step("track", "report"),
        runs=lambda w: sorted({f"runs/{name}" for name in (w.report, *CHAIN.members(w.report))}),
        uri=PARAMS.tracking_uri,
    log:
        "runs/{report}/tracking.log",
    localrule: True
    resources:
        mem_mb=1000,
        runtime=60,
    shell:
        STEP + "-- track sync {params.runs:q} --uri {params.uri:q} --output {output:q} --limit 600 --or-later 2>&1"
        " | tee {log:q}"
