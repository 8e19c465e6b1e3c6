# Journals of all runs → MLflow. Jobs only write journals: tracking cannot delay or fail a training.


rule track:
    message:
        "MLflow: runs of {wildcards.experiment}"
    input:
        lambda w: tables_of(w.experiment),
        lambda w: figures_of(w.experiment),
    output:
        "runs/{experiment}/tracking.json",
    params:
        runs=lambda w: f"runs/{w.experiment}",
        uri=PARAMS.tracking_uri,
    log:
        "runs/{experiment}/tracking.log",
    resources:
        mem_mb=1000,
        runtime=60,
    shell:
        "edm track sync {params.runs:q} --uri {params.uri:q} --output {output:q} > {log:q} 2>&1"
