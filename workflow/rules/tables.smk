# Distances and searches → tables, each a job of its own, and one JSON of headline numbers.


rule table:
    message:
        "Table {wildcards.report} {wildcards.table}"
    input:
        unpack(made_from("table", "report", "table")),
    output:
        [f"results/{{report}}/tables/{{table}}{suffix}" for suffix in files.TABLE_FORMATS],
    params:
        step=step("table", "report", "table"),
        expect=expect("table", "report", "table"),
    log:
        "runs/{report}/logs/{table}.log",
    localrule: True
    resources:
        mem_mb=500,
        runtime=15,
    shell:
        STEP + "-- tables {wildcards.report:q} {wildcards.table:q} --expect {params.expect} > {log:q} 2>&1"


rule metrics:
    message:
        "Headline numbers and curves of {wildcards.report}"
    input:
        unpack(made_from("metrics", "report")),
    output:
        files.metrics_files("{report}"),
    params:
        step=step("metrics", "report"),
    log:
        "runs/{report}/logs/metrics.log",
    localrule: True
    resources:
        mem_mb=500,
        runtime=15,
    shell:
        STEP + "-- metrics {wildcards.report:q} > {log:q} 2>&1"
