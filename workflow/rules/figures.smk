# Results, sheets, analyses and datasets → figures, one job each.


rule figure:
    message:
        "Figure {wildcards.report} {wildcards.figure}"
    input:
        unpack(inputs_of("figure", "report", "figure")),
    output:
        shown("results/{report}/figures/{figure}.png", "Figures", "figure"),
        [f"results/{{report}}/figures/{{figure}}{suffix}" for suffix in paths.FIGURE_FORMATS if suffix != ".png"],
    params:
        step=step("figure", "report", "figure"),
        expect=expect("figure", "report", "figure"),
    log:
        "runs/{report}/logs/{figure}.log",
    resources:
        mem_mb=1500,
        runtime=60,
    shell:
        started("figures {wildcards.report:q} {wildcards.figure:q} --expect {params.expect} > {log:q} 2>&1")
