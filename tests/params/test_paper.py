"""params.yaml's experiments of the paper, held to its tables: written out here from the paper, not from the program."""

import csv
import io
from dataclasses import fields
from itertools import pairwise, product
from pathlib import Path

import pytest

from edm import params
from edm.config import TrainingConfig
from edm.networks.flops import parameters
from edm.params.layouts import table_layout
from edm.params.paper import published
from edm.report.results import Results
from edm.report.tables import build_table
from edm.report.writers import as_csv, as_html, as_latex, as_markdown

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "edm" / "params" / "paper.yaml").read_text(encoding="utf-8")
RUNGS = "ABCDEF"
DATASETS = ("cond", "uncond", "ffhq", "afhqv2")  # the column pairs of Table 2

#: Table 7, its columns split by what a rung may change: "base" is configuration A, "ours" what B to F come to.
BASE = {"batch_size": 128, "clip_norm": 1.0, "learning_rate": 2e-4, "lr_rampup": 0.64, "ema_rampup": None,
        "dropout": 0.10}  # fmt: skip
OURS = {"clip_norm": None, "lr_rampup": 10, "ema_halflife": 0.5, "ema_rampup": 0.05}
TABLE_7 = {
    "cond": {**OURS, "batch_size": 512, "learning_rate": 1e-3, "dropout": 0.13},
    "uncond": {**OURS, "batch_size": 512, "learning_rate": 1e-3, "dropout": 0.13},
    "ffhq": {**OURS, "batch_size": 256, "learning_rate": 2e-4, "dropout": 0.05},
    "afhqv2": {**OURS, "batch_size": 256, "learning_rate": 2e-4, "dropout": 0.25},
}
EMA_OF_A = {"vp": 0.887, "ve": 0.0887}  # Mimg: score_sde's decays 0.9999 and 0.999 at batch 128
CHANNELS = {32: {"A": (1, 2, 2, 2), "ours": (2, 2, 2)}, 64: {"A": (1, 1, 2, 2, 2), "ours": (1, 2, 2, 2)}}
AUGMENTED = {"cond": 0.12, "uncond": 0.12, "ffhq": 0.15, "afhqv2": 0.15}
#: What a row of Table 2 adds to the one above, in its own words and Table 7's.
ADDED = {
    "B": {"batch_size", "clip_norm", "learning_rate", "lr_rampup", "ema_halflife", "ema_rampup", "dropout"},
    "C": {"channel_mult"},
    "D": {"preconditioning"},
    "E": {"loss"},
    "F": {"augment", "x_flip"},
}


@pytest.fixture(scope="module")
def report():
    return params.load(ROOT / "params.yaml").report("paper")


def expected(dataset, column, rung):
    """A cell of Table 2 as Table 7 describes it."""
    resolution = 32 if dataset in ("cond", "uncond") else 64
    choices = {**BASE, "ema_halflife": EMA_OF_A[column]} if rung == "A" else TABLE_7[dataset]
    return {
        **choices,
        "resolution": resolution,
        "channels": 3,
        "conditional": dataset == "cond",
        "architecture": {"vp": "ddpmpp", "ve": "ncsnpp"}[column],
        "model_channels": 128,
        "channel_mult": CHANNELS[resolution]["A" if rung in "AB" else "ours"],
        "num_blocks": 4,
        "attn_resolutions": (16,),
        "preconditioning": column if rung in "ABC" else "edm",
        "loss": column if rung in "ABCD" else "edm",
        "augment": AUGMENTED[dataset] if rung == "F" else 0.0,
        "x_flip": rung != "F",
        "duration": 200,
        "snapshot_every": 2.5,
        "precision": "fp32",
    }  # fmt: skip


# Tables 2 and 7: trainings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset, column, rung", list(product(DATASETS, ("vp", "ve"), RUNGS)))
def test_every_cell_of_table_2_is_trained_with_the_numbers_of_table_7(report, dataset, column, rung):
    experiment = report.experiments[dataset]
    model = f"{column}-{rung}"
    if dataset == "uncond" and rung == "A":
        assert experiment.pretrained[model] == f"score_sde-cifar10-32x32-uncond-{column}"  # the paper's * of Table 2
        return
    config = experiment.models[model]
    wanted = expected(dataset, column, rung)
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert config.network().classes == (10 if dataset == "cond" else 0)
    assert (config.P_mean, config.P_std, config.sigma_data) == (-1.2, 1.2, 0.5)  # Table 1


def test_imagenet_is_trained_as_table_7_says(report):
    """ADM in configuration E: 2500 Mimg in fp16 with a loss scale of 100, a snapshot every 10 Mimg."""
    experiment = report.experiments["imagenet"]
    assert list(experiment.models) == ["adm-E"] and experiment.pretrained == {
        "adm-published": "adm-imagenet-64x64-cond"
    }
    config = experiment.models["adm-E"]
    wanted = {"resolution": 64, "conditional": True, "classes": 1000, "architecture": "adm", "model_channels": 192,
              "channel_mult": (1, 2, 3, 4), "num_blocks": 3, "attn_resolutions": (32, 16, 8), "duration": 2500,
              "batch_size": 4096, "clip_norm": None, "precision": "fp16", "loss_scale": 100, "learning_rate": 1e-4,
              "lr_rampup": 10, "ema_halflife": 50, "ema_rampup": 0.05, "dropout": 0.10, "x_flip": False, "augment": 0,
              "preconditioning": "edm", "loss": "edm", "snapshot_every": 10}  # fmt: skip
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert config.network().channels_per_head == 64 and config.network().style == "adm"


@pytest.mark.parametrize("dataset, column", list(product(DATASETS, ("vp", "ve"))))
def test_each_rung_changes_what_table_2_says_and_nothing_else(report, dataset, column):
    models = report.experiments[dataset].models
    there = [rung for rung in RUNGS if f"{column}-{rung}" in models]
    for lower, upper in pairwise(there):
        before, after = models[f"{column}-{lower}"], models[f"{column}-{upper}"]
        changed = {f.name for f in fields(TrainingConfig) if getattr(before, f.name) != getattr(after, f.name)}
        unchanged = ADDED[upper] - changed
        assert changed <= ADDED[upper]
        # FFHQ and AFHQv2 keep the learning rate of 2e-4.
        assert unchanged == ({"learning_rate"} if upper == "B" and dataset in ("ffhq", "afhqv2") else set())


def test_vp_and_ve_differ_in_what_song_et_al_published_until_the_ladder_replaces_it(report):
    for dataset, rung in product(DATASETS, RUNGS):
        models = report.experiments[dataset].models
        if f"vp-{rung}" not in models:
            continue
        vp, ve = models[f"vp-{rung}"], models[f"ve-{rung}"]
        differing = {f.name for f in fields(TrainingConfig) if getattr(vp, f.name) != getattr(ve, f.name)}
        still = {"A": {"ema_halflife", "preconditioning", "loss"}, "B": {"preconditioning", "loss"},
                 "C": {"preconditioning", "loss"}, "D": {"loss"}}.get(rung, set())  # fmt: skip
        assert differing == {"architecture"} | still, (dataset, rung)


def test_46_trainings_two_imported_cells_and_adm_make_the_tables_and_one_more_the_leakage_check(report):
    trained = [(e.dataset, m) for e in report.experiments.values() for m in e.models]
    imported = [file for e in report.experiments.values() for file in e.pretrained.values()]
    in_table_2 = [s for s in table_layout(report, "table2").sources() if s.model in s.experiment.models]
    assert len(in_table_2) == 46 and len({(s.experiment.name, s.model) for s in in_table_2}) == 46
    others = set(trained) - {(s.experiment.dataset, s.model) for s in in_table_2}
    assert others == {("imagenet", "adm-E"), ("cifar10", "leak")}
    assert sorted(imported) == ["adm-imagenet-64x64-cond"] + [
        f"score_sde-cifar10-32x32-uncond-{c}" for c in ("ve", "vp")
    ]
    leak = report.experiments["uncond"].models["leak"]
    assert leak.augment == 1.0 and leak.x_flip is False  # Appendix F.2: A_prob = 100 %


def test_every_trained_cell_reports_its_best_snapshot(report):
    """One every 2.5 Mimg, for ImageNet every 10; judged by deterministic sampling at NFE 35 or 79."""
    for role, experiment in report.experiments.items():
        for model, config in experiment.models.items():
            if (role, model) == ("uncond", "leak"):
                assert not experiment.chosen(model)
                continue
            assert experiment.chosen(model)
            assert len(config.snapshots) == (250 if role == "imagenet" else 80)
            assert config.snapshots[-1] <= config.steps * config.batch_size
            sampler = experiment.grids[experiment.choice.grid].points[model][0].sampler
            assert sampler.S_churn == 0 and sampler.nfe == (35 if role in ("cond", "uncond") else 79)


def test_distances_are_of_50_000_images_of_three_seed_ranges_in_fids_features(report):
    for experiment in report.experiments.values():
        sampling = experiment.sampling
        assert [sampling.seeds(repeat) for repeat in range(sampling.repeats)] == [
            range(0, 50_000), range(50_000, 100_000), range(100_000, 150_000),
        ]  # fmt: skip
        assert experiment.features == "inception-v3-compat"
        assert experiment.feature_weights.endswith("weights-inception-2015-12-05-6726825d.pth")


@pytest.mark.parametrize(
    "role, rungs, DDPM, NCSN",  # millions of parameters; in A and B the paper's 62 to 63 and 67 to 68 are the two
    [("cond", "AB", 62, 63), ("cond", "CDEF", 55.7, 56.4), ("ffhq", "AB", 67, 68), ("ffhq", "CDEF", 61.8, 62.8)],
)
def test_networks_have_as_many_parameters_as_table_8_says(report, role, rungs, DDPM, NCSN):
    digits = 1 if isinstance(DDPM, float) else None
    for rung in rungs:
        counts = [parameters(report.experiments[role].models[f"{column}-{rung}"]) / 1e6 for column in ("vp", "ve")]
        assert [round(count, digits) for count in counts] == [DDPM, NCSN]
    assert 295 <= parameters(report.experiments["imagenet"].models["adm-E"]) / 1e6 <= 296


# Tables 2 to 5: samplers ----------------------------------------------------------------------------------------------


def grid_of(report, role, name, model):
    return [point.sampler for point in report.experiments[role].grids[name].points[model]]


@pytest.mark.parametrize("role", [*DATASETS, "imagenet"])
def test_the_ladder_is_measured_by_algorithm_1_at_nfe_35_and_79(report, role):
    experiment = report.experiments[role]
    assert set(experiment.grids["ladder"].models) >= {s.model for s in table_layout(report, "table2").sources()
                                                      if s.experiment is experiment}  # fmt: skip
    for model in experiment.grids["ladder"].models:
        (sampler,) = grid_of(report, role, "ladder", model)
        assert sampler.nfe == (35 if role in ("cond", "uncond") else 79)
        assert (sampler.solver, sampler.alpha, sampler.S_churn, sampler.rho) == ("heun", 1, 0, 7)
        assert (sampler.discretization, sampler.schedule, sampler.scaling) == ("edm", "linear", "none")


PRETRAINED = (("uncond", "vp-A"), ("uncond", "ve-A"), ("imagenet", "adm-published"))


def choices(samplers):
    found = {(s.solver, s.discretization, s.schedule, s.scaling) for s in samplers}
    assert len(found) == 1
    return found.pop()


def test_table_3_replaces_the_original_choices_one_by_one(report):
    """Their sampler; Euler with their t_i, σ(t) and s(t); Heun and our t_i; our σ(t) and s(t); a black box."""
    rows = {
        "original": [("vp-ode",), ("ve-ode",), ("ddim",)],
        "euler": [("euler", "vp", "vp", "vp"), ("euler", "ve", "ve", "none"), ("euler", "iddpm", "linear", "none")],
        "heun": [("heun", "edm", "vp", "vp"), ("heun", "edm", "ve", "none"), ("heun", "edm", "linear", "none")],
        "ours": [("heun", "edm", "linear", "none")] * 2,
        "rk45": [("rk45",)] * 3,
    }
    for grid, cells in rows.items():
        for (role, model), wanted in zip(PRETRAINED, cells, strict=False):
            samplers = grid_of(report, role, grid, model)
            assert choices(samplers)[: len(wanted)] == wanted
            assert all(s.S_churn == 0 and s.alpha == 1 for s in samplers)
    assert "ours" not in report.experiments["imagenet"].grids  # ADM's σ(t) and s(t) are ours already: the paper's –


@pytest.mark.parametrize(
    "grid, optima",  # the NFE of Table 3's cells, deterministic, and of Table 4's, stochastic
    [
        ("original", (256, 8192, 250)),
        ("euler", (512, 8192, 384)),
        ("heun", (255, 191, 79)),
        ("ours", (35, 27)),
        ("stochastic-plain", (95, 383, 383)),
        ("stochastic-noise", (127, 511, 767)),
        ("stochastic-range", (95, 191, 255)),
        ("stochastic-all", (383, 767, 511)),
        ("original-sde", (768, 1024, 384)),
    ],
)
def test_the_grids_pass_where_the_paper_found_its_numbers(report, grid, optima):
    """A curve that leaves out the NFE at which the paper read its number could not confirm it."""
    for (role, model), nfe in zip(PRETRAINED, optima, strict=False):
        assert nfe in {sampler.nfe for sampler in grid_of(report, role, grid, model)}, model


#: Table 5.
CHURN = {
    ("uncond", "vp-A"): (30, 0.01, 1, 1.007),
    ("uncond", "ve-A"): (80, 0.05, 1, 1.007),
    ("imagenet", "adm-published"): (80, 0.05, 50, 1.003),
    ("imagenet", "adm-E"): (40, 0.05, 50, 1.003),
}


def churn(sampler):
    return (sampler.S_churn, sampler.S_min, sampler.S_max, sampler.S_noise)


@pytest.mark.parametrize("role, model", CHURN)
def test_optimal_stochastic_sampling_takes_the_parameters_of_table_5(report, role, model):
    grid = "stochastic-retrained" if model == "adm-E" else "stochastic-all"
    assert {churn(sampler) for sampler in grid_of(report, role, grid, model)} == {CHURN[role, model]}
    assert churn(report.experiments[role].sheets["sde"].samplers[model]) == CHURN[role, model]


@pytest.mark.parametrize("role, model", CHURN)
def test_the_search_of_table_5_runs_over_the_papers_lists_and_could_find_its_optimum(report, role, model):
    search = report.experiments[role].searches["table5-retrained" if model == "adm-E" else "table5"]
    levels = [0.2, 0.5, 1, 2, 5, 10, 20, 50]
    assert {name: sorted(values) for name, values in search.over.items()} == {
        "S_churn": [10 * i for i in range(11)],
        "S_min": [0, 0.005, 0.01, 0.02, 0.05, 0.1, *levels[:-2]],
        "S_max": [*levels, 80],
        "S_noise": [pytest.approx(1 + i / 1000) for i in range(11)],
    }
    for name, value in zip(("S_churn", "S_min", "S_max", "S_noise"), CHURN[role, model], strict=True):
        assert value in search.over[name]
    assert search.method == "coordinate" and search.samplers[model].num_steps == 256


@pytest.mark.parametrize("role, model", list(CHURN)[:3])
def test_table_4_takes_away_one_choice_at_a_time(report, role, model):
    """Without the limits in σ, without more noise than was taken away, without either; the churn is found anew."""
    _, low, high, noise = CHURN[role, model]
    everywhere, unlimited = (0, float("inf")), 1.0
    rows = {"plain": (everywhere, unlimited), "noise": (everywhere, noise), "range": ((low, high), unlimited)}
    experiment = report.experiments[role]
    for name, ((lowest, highest), S_noise) in rows.items():
        for sampler in grid_of(report, role, f"stochastic-{name}", model):
            assert (sampler.S_min, sampler.S_max, sampler.S_noise) == (lowest, highest, S_noise)
        assert experiment.grids[f"stochastic-{name}"].settings_from == name
        assert list(experiment.searches[name].over) == ["S_churn"]
        assert experiment.searches[name].method == "exhaustive"
        for sampler in grid_of(report, role, f"churn-{name}", model):  # Figure 15
            assert (sampler.S_min, sampler.S_max, sampler.S_noise) == (lowest, highest, S_noise)
            assert sampler.num_steps == 256


def test_the_studies_of_the_figures_are_the_papers(report):
    """Figures 5b, c and 15: churn at N = 256. 13: ρ; N = 64, 200 sub-steps, 200 samples. 14: up to 10,000 times."""
    experiments = report.experiments
    for role, model in (*PRETRAINED, ("uncond", "vp-F"), ("uncond", "ve-F")):
        samplers = grid_of(report, role, "churn-all", model)
        assert {s.num_steps for s in samplers} == {256} and len({s.S_churn for s in samplers}) == 11
    truncation = experiments["uncond"].analyses["truncation"]
    assert truncation.models == ("ve-A",)
    assert {k: truncation.settings[k] for k in ("num_steps", "substeps", "samples")} == {
        "num_steps": 64, "substeps": 200, "samples": 200,
    }  # fmt: skip
    for role, noises in (("uncond", [1, 1.007]), ("imagenet", [1, 1.003])):
        settings = experiments[role].analyses["degradation"].settings
        assert settings["S_noise"] == noises and max(settings["repetitions"]) == 10_000
    for role, model in PRETRAINED:
        rhos = grid_of(report, role, "rho", model)
        assert {7, 1} <= {s.rho for s in rhos} and len({s.num_steps for s in rhos}) == 1
        alphas = [s.alpha for s in grid_of(report, role, "alpha", model)]
        assert alphas == [0.5, pytest.approx(2 / 3), 1, 1.1]  # Appendix D.2


def test_adm_as_published_is_measured_against_its_authors_statistics_and_ours_against_ours(report):
    experiment = report.experiments["imagenet"]
    for grid in experiment.grids.values():
        theirs = grid.reference is not None and "VIRTUAL_imagenet64" in grid.reference
        assert theirs == (grid.models == ("adm-published",)), grid.name


def test_every_figure_of_the_paper_is_there_panel_by_panel(report):
    wanted = {"1", "2a", "2b", "2c", "3", "4a", "4b", "4c", "5a", "5b", "5c", "6", "7", "8a", "8b", "9", "10", "11a",
              "11b", "12a", "12b", "13ab", "13c", "14a", "14b", "15a", "15b", "15c"}  # fmt: skip
    assert set(report.figures) == {f"figure{panel}" for panel in wanted} | {"alpha", "leakage"}
    assert set(report.tables) == {"table2", "table3", "table4", "table5", "table7", "table8", "imagenet"}


# The paper's numbers --------------------------------------------------------------------------------------------------


def published_cells(report):
    for name, spec in report.tables.items():
        table = build_table(report, name, Results(Path("nowhere"), Path("nowhere")))
        for row, cells in table.rows.items():
            for column, cell in zip(table.columns, cells, strict=True):
                yield spec["paper"], row, column, cell


def test_every_cell_has_its_published_number_and_only_adms_schedule_has_none(report):
    without = [(table, row, column) for table, row, column, cell in published_cells(report) if cell.paper is None]
    assert without == [("table3", "+ our schedule & scaling", "ImageNet-64")]  # – in the paper: the same as above
    ours = table_layout(report, "table3").rows["+ our schedule & scaling"]
    assert [source is None for source in ours] == [False, False, True]


@pytest.mark.parametrize(
    "table, row, column, value, nfe, verified",  # read in the paper, a few of every table
    [
        ("table2", "A", "uncond. VP", 3.01, None, True),
        ("table2", "C", "FFHQ VE", 41.62, None, True),
        ("table2", "F", "cond. VE", 1.79, None, True),
        ("table2", "F", "AFHQv2 VP", 1.96, None, True),
        ("table3", "Original sampler", "CIFAR-10 VE", 5.45, 8192, True),
        ("table3", "Our reimplementation", "ImageNet-64", 2.73, 384, False),
        ("table3", "+ our schedule & scaling", "CIFAR-10 VE", 3.73, 27, True),
        ("table3", "Black-box RK45", "CIFAR-10 VP", 2.94, 115, False),
        ("table4", "Algorithm 2, optimal settings", "ImageNet-64", 1.55, 511, True),
        ("table4", "Algorithm 2, all noise levels", "CIFAR-10 VE", 2.51, 511, False),
        ("table4", "Previous work", "CIFAR-10 VP", 2.55, 768, False),
        ("table5", "S_churn", "ImageNet ours", 40, None, True),
        ("table5", "S_noise", "CIFAR-10 VP", 1.007, None, True),
        ("table7", "EMA half-life (Mimg)", "FFHQ base VE", 0.0887, None, False),
        ("table7", "minibatch", "ImageNet ours", 4096, None, True),
        ("table8", "parameters (M)", "DDPM++ 64", 61.8, None, True),
        ("imagenet", "Pre-trained ADM, as published", "FID", 2.07, None, True),
        ("imagenet", "Retrained (config E), deterministic", "FID", 2.22, None, False),
        ("imagenet", "Retrained (config E), Algorithm 2", "FID", 1.36, None, True),
    ],
)
def test_published_numbers_are_the_papers(table, row, column, value, nfe, verified):
    cell = published(table, row, column)
    assert (cell.value, cell.nfe, cell.verified) == (value, nfe, verified)


def test_numbers_that_nobody_has_checked_are_marked_in_every_format_and_false_in_csv(report):
    """° in the file of the paper's numbers, ° in what people read, verified=false in what programs read."""
    doubtful = sum(line.count("°") for line in TEXT.splitlines() if not line.startswith("#"))
    assert doubtful == 8 + 12 + 2 + 2 + 1  # in Tables 3, 4, 7 and 8, and the headline
    shown = {"markdown": 0, "latex": 0, "html": 0, "csv": 0}
    for name in report.tables:
        table = build_table(report, name, Results(Path("nowhere"), Path("nowhere")))
        note = [n for n in table.notes if "° marks" in n]
        cells = sum(cell.paper is not None and not cell.paper.verified for row in table.rows.values() for cell in row)
        assert len(note) == (cells > 0)
        shown["markdown"] += as_markdown(table).count("°") - len(note)
        shown["html"] += as_html(table).count("°") - len(note)
        shown["latex"] += as_latex(table).count(r"^\circ") - len(note)
        shown["csv"] += [line["verified"] for line in csv.DictReader(io.StringIO(as_csv(table)))].count("false")
    assert shown == dict.fromkeys(shown, doubtful)


def test_tables_7_and_8_of_our_configurations_are_the_papers_own(report):
    """Resolved from params.yaml on one side, printed by the paper on the other.

    The one difference: the paper gives one size for both networks of a resolution, which is that of DDPM++.
    """
    differing = []
    for name in ("table7", "table8"):
        table = build_table(report, name, Results(Path("nowhere"), Path("nowhere")))
        assert all(cell.text for cells in table.rows.values() for cell in cells)
        differing += [(row, column, cell.difference) for row, cells in table.rows.items()
                      for column, cell in zip(table.columns, cells, strict=True) if cell.difference]  # fmt: skip
    assert differing == [("parameters (M)", "NCSN++ 32", "+0.7"), ("parameters (M)", "NCSN++ 64", "+1")]
