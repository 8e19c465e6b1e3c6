# Results, sheets, analyses and datasets → figures, each a job of its own.


rule figure:
    message:
        "Figure {wildcards.report} {wildcards.figure}"
    input:
        inputs(CHAIN.figure_inputs, "report", "figure"),
    output:
        [f"results/{{report}}/figures/{{figure}}{suffix}" for suffix in files.FIGURE_FORMATS],
    params:
        spec=lambda w: canonical_json(contents.figure_spec(CHAIN.reports[w.report], w.figure)),
        expect=lambda w: digest(contents.figure_spec(CHAIN.reports[w.report], w.figure)),
    log:
        "runs/{report}/logs/{figure}.log",
    resources:
        mem_mb=1500,
        runtime=60,
    shell:
        "edm figures {wildcards.report:q} {wildcards.figure:q} --expect {params.expect} > {log:q} 2>&1"
