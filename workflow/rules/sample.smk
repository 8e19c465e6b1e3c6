# Model → images to look at, and studies of a model.


rule sample:
    message:
        "Sample {wildcards.experiment} {wildcards.model}: {wildcards.sheet}"
    input:
        lambda w: files.model_file(CHAIN.experiments[w.experiment], w.model),
    output:
        "runs/{experiment}/{model}/sheets/{sheet}.safetensors",
    params:
        spec=spec("sheet", "experiment", "model", "sheet"),
        expect=expect("sheet", "experiment", "model", "sheet"),
    log:
        "runs/{experiment}/{model}/sheets/{sheet}.log",
    resources:
        mem_mb=1500,
        runtime=120,
        **ONE_GPU,
    shell:
        LAUNCH + " sheet {input:q} {output:q} --experiment {wildcards.experiment:q} --model {wildcards.model:q}"
        " --sheet {wildcards.sheet:q} --expect {params.expect} >> {log:q} 2>&1"


rule analyse:
    message:
        "Analyse {wildcards.experiment} {wildcards.model}: {wildcards.analysis}"
    input:
        inputs(CHAIN.analysis_inputs, "experiment", "model", "analysis"),
    output:
        "runs/{experiment}/{model}/analyses/{analysis}.safetensors",
    params:
        options=lambda w, input: [
            *(["--data", input[1]] if len(input) > 1 else []),
            *(["--weights", input[2]] if len(input) > 2 else []),
        ],
        spec=spec("analysis", "experiment", "model", "analysis"),
        expect=expect("analysis", "experiment", "model", "analysis"),
    log:
        "runs/{experiment}/{model}/analyses/{analysis}.log",
    resources:
        mem_mb=3000,
        runtime=480,
        **ONE_GPU,
    shell:
        LAUNCH + " analyse {input[0]:q} {output:q} --experiment {wildcards.experiment:q} --model {wildcards.model:q}"
        " --analysis {wildcards.analysis:q} {params.options:q} --expect {params.expect}"
        " >> {log:q} 2>&1"
