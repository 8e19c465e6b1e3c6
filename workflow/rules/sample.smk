# Model → sample sheets and studies of the model.


rule sample:
    message:
        "Sample {wildcards.experiment} {wildcards.model}: {wildcards.sheet}"
    input:
        unpack(inputs_of("sample", "experiment", "model", "sheet")),
    output:
        "runs/{experiment}/{model}/sheets/{sheet}.safetensors",
    params:
        step=step("sample", "experiment", "model", "sheet"),
        expect=expect("sample", "experiment", "model", "sheet"),
    log:
        "runs/{experiment}/{model}/sheets/{sheet}.log",
    resources:
        **ONE_GPU,
        mem_mb=1500,
        runtime=120,
    shell:
        launched(
            "sheet {input.model:q} {output:q} --experiment {wildcards.experiment:q} --model {wildcards.model:q}"
            " --sheet {wildcards.sheet:q} --expect {params.expect} >> {log:q} 2>&1"
        )


rule analyse:
    message:
        "Analyse {wildcards.experiment} {wildcards.model}: {wildcards.analysis}"
    input:
        unpack(inputs_of("analyse", "experiment", "model", "analysis")),
    output:
        "runs/{experiment}/{model}/analyses/{analysis}.safetensors",
    params:
        options=lambda w, input: [
            *(["--data", input.dataset] if "dataset" in input.keys() else []),
            *(["--weights", input.weights] if "weights" in input.keys() else []),
            *(["--evaluations"] if "results" in input.keys() else []),
            *([input.results] if isinstance(input.get("results"), str) else input.get("results", [])),
        ],
        step=step("analyse", "experiment", "model", "analysis"),
        expect=expect("analyse", "experiment", "model", "analysis"),
    log:
        "runs/{experiment}/{model}/analyses/{analysis}.log",
    resources:
        **ONE_GPU,
        mem_mb=3000,
        runtime=480,
    shell:
        launched(
            "analyse {input.model:q} {output:q} --experiment {wildcards.experiment:q} --model {wildcards.model:q}"
            " --analysis {wildcards.analysis:q} {params.options:q} --expect {params.expect}"
            " >> {log:q} 2>&1"
        )
