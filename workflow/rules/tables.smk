# Distances and searches → tables, one job each; one JSON file of headline numbers; provenance pages.


rule table:
    message:
        "Table {wildcards.report} {wildcards.table}"
    input:
        unpack(inputs_of("table", "report", "table")),
    output:
        [f"results/{{report}}/tables/{{table}}{suffix}" for suffix in paths.TABLE_FORMATS if suffix != ".html"],
        shown("results/{report}/tables/{table}.html", "Tables", "table"),
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
        started("tables {wildcards.report:q} {wildcards.table:q} --expect {params.expect} > {log:q} 2>&1")


rule metrics:
    message:
        "Headline numbers and curves of {wildcards.report}"
    input:
        unpack(inputs_of("metrics", "report")),
    output:
        paths.metrics_files("{report}"),
    params:
        step=step("metrics", "report"),
        expect=expect("metrics", "report"),
    log:
        "runs/{report}/logs/metrics.log",
    localrule: True
    resources:
        mem_mb=500,
        runtime=15,
    shell:
        started("metrics {wildcards.report:q} --expect {params.expect} > {log:q} 2>&1")


rule about:
    message:
        "How {wildcards.report} was made"
    input:
        unpack(inputs_of("about", "report")),
    output:
        [shown(path, "How it was made", page) for page, path in zip(paths.ABOUT, paths.about_files("{report}"))],
    params:
        step=step("about", "report"),
    log:
        "runs/{report}/logs/about.log",
    localrule: True
    resources:
        mem_mb=500,
        runtime=15,
    shell:
        started("about {wildcards.report:q} > {log:q} 2>&1")
