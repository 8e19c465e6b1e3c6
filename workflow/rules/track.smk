# Journals of all runs → MLflow. Jobs only write journals: tracking cannot delay or fail a training. Nor does a store
# that is down, locked or full fail the chain: the summary says what is to come, and any later `edm track sync` brings it.


rule track:
    message:
        "MLflow: runs of {wildcards.report}"
    input:
        inputs(CHAIN.track_inputs, "report"),
    output:
        "runs/{report}/tracking.json",
    params:
        runs=lambda w: sorted({f"runs/{name}" for name in (w.report, *CHAIN.members(w.report))}),
        uri=PARAMS.tracking_uri,
    log:
        "runs/{report}/tracking.log",
    localrule: True
    resources:
        mem_mb=1000,
        runtime=60,
    shell:
        "edm track sync {params.runs:q} --uri {params.uri:q} --output {output:q} --limit 600 --or-later 2>&1 | tee {log:q}"
