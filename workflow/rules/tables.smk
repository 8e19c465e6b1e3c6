# Distances and searches → tables, each a job of its own, and one JSON of headline numbers.


rule table:
    message:
        "Table {wildcards.report} {wildcards.table}"
    input:
        inputs(CHAIN.table_inputs, "report", "table"),
    output:
        [f"results/{{report}}/tables/{{table}}{suffix}" for suffix in files.TABLE_FORMATS],
    params:
        spec=lambda w: canonical_json(contents.table_spec(CHAIN.reports[w.report], w.table)),
        expect=lambda w: digest(contents.table_spec(CHAIN.reports[w.report], w.table)),
    log:
        "runs/{report}/logs/{table}.log",
    localrule: True
    resources:
        mem_mb=500,
        runtime=15,
    shell:
        "edm tables {wildcards.report:q} {wildcards.table:q} --expect {params.expect} > {log:q} 2>&1"


rule metrics:
    message:
        "Headline numbers of {wildcards.report}"
    input:
        inputs(CHAIN.metrics_inputs, "report"),
    output:
        "results/{report}/metrics.json",
    params:
        spec=lambda w: canonical_json([contents.table_spec(CHAIN.reports[w.report], t) for t in CHAIN.reports[w.report].tables]),
    log:
        "runs/{report}/logs/metrics.log",
    localrule: True
    resources:
        mem_mb=500,
        runtime=15,
    shell:
        "edm metrics {wildcards.report:q} > {log:q} 2>&1"
