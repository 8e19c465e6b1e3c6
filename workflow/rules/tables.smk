# Distances → tables. One rule per experiment, since what it writes is named in params.yaml.
for name in EXPERIMENTS:

    rule:
        name:
            f"tables_{name}"
        message:
            "Tables of {params.experiment}"
        input:
            distances_of(name),
        output:
            tables_of(name),
        params:
            experiment=name,
            spec=canonical_json(EXPERIMENTS[name].results_spec()),
            expect=digest(EXPERIMENTS[name].results_spec()),
        log:
            f"runs/{name}/tables.log",
        resources:
            mem_mb=500,
            runtime=15,
        shell:
            "edm tables {params.experiment:q} --expect {params.expect} > {log:q} 2>&1"
