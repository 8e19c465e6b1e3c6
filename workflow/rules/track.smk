# Journals of all runs → MLflow. Jobs only write journals, so tracking cannot delay or fail a training run. An
# unreachable, locked or full store does not fail the chain either: the summary states what is undelivered, and the next
# run of Snakemake, or any `edm track sync`, delivers it.
rule track:
    message:
        "MLflow: runs of {wildcards.report}"
    input:
        unpack(inputs_of("track", "report")),
    output:
        "results/{report}/tracking.json",
    params:
        step=step("track", "report"),
        runs=lambda w: CHAIN.tracked(w.report),
        uri=PARAMS.tracking_uri,
    log:
        "runs/{report}/tracking.log",
    localrule: True
    resources:
        mem_mb=1000,
        runtime=60,
    shell:
        started(
            "track sync {params.runs:q} --uri {params.uri:q} --output {output:q} --limit 600 --or-later 2>&1"
            " | tee {log:q}"
        )
