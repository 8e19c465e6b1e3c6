"""``edm advise``: settings that fit a dataset."""

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from edm.commands.common import Commands, machine, say, threads
from edm.errors import UserError, require

if TYPE_CHECKING:
    from edm.analysis.advice import Advice


FORMAT = "edm-advice/1"


def add(command: Commands) -> None:
    sub = command(
        "advise", advise, "derive sigma_data, the range of sigma, P_mean and P_std from a dataset",
        "Derive sigma_data, the range of sigma, P_mean and P_std from a dataset, and print the lines for params.yaml.",
    )  # fmt: skip
    sub.add_argument("data", help="dataset archive, which `edm prepare` makes")
    sub.add_argument("--levels", help="levels.json of a training run on this dataset: P_mean and P_std from its error")
    sub.add_argument("--figure", metavar="FILE", help="draw the curves: FILE.png or FILE.svg; writes both")
    sub.add_argument("--output", metavar="FILE", help="write everything, with the curves, to a JSON file")
    sub.add_argument("--json", action="store_true", help="print everything, with the curves, as JSON")
    machine(sub, device=False)


def advise(args: Namespace) -> None:
    figure = None if args.figure is None else Path(args.figure)
    if figure is not None:
        if figure.suffix not in (".png", ".svg"):
            raise UserError(f"{figure}: choose an ending: .png or .svg")
        require("matplotlib")
    from edm.analysis.advice import advise

    threads(args.threads)
    found = advise(args.data, args.levels)
    if figure is not None:
        from edm.report.panels import advice

        written: list[Path] = []
        chosen = None if found.P_mean is None or found.P_std is None else (found.P_mean, found.P_std)
        advice(found.curves, chosen, figure.with_suffix(""), written, network=args.levels is not None)
        say("\n".join(map(str, written)))
    if args.output:
        from edm.files.writing import write_json

        write_json(args.output, {"format": FORMAT, **found.to_dict()})
    print(json.dumps(found.to_dict(), indent=1) if args.json else as_text(found, args.data, args.levels))


def as_text(found: "Advice", data: str, levels: str | None) -> str:
    """The advice in words, and the lines for params.yaml."""
    spectrum = "all pixels" if found.spectrum == "covariance" else "each frequency alone: an upper bound of e0"
    of = f"the network of {levels}" if levels else f"the ideal denoiser of {found.subset:,} of its images"
    rows = [
        f"{data}: {found.images:,} images",
        f"  sigma_data  {found.sigma_data:.4g}   deviation of the pixels from their mean, {found.mean:.3g}",
        f"  sigma_min   {found.sigma_min:.4g}   the best linear denoiser's error e0 is the rounding to 8 bits",
        f"  sigma_max   {found.sigma_max:.4g}   a denoiser's output has 1 % of the data's variance",
        f"  ln sigma    {_normal(found.P_mean, found.P_std)}, from e0 ({spectrum}) and e1 ({of})",
    ]
    sure = levels is not None and found.P_mean is not None
    if not levels:
        new = _normal(found.P_mean_new, found.P_std_new)
        rows += [
            f"              {new}, with e1 on images that it does not have",
            "  The first counts what only memorisation wins, the second only what so few images show: use neither",
            "  as it is. Train with the default (-1.2, 1.2); then --levels gives P_mean and P_std of that network.",
        ]
    distribution = f", P_mean: {found.P_mean:.2f}, P_std: {found.P_std:.2f}" if sure else ""
    rows += [
        "For params.yaml:",
        "    base: {" + f"sigma_data: {found.sigma_data:.3g}{distribution}" + "}",
        "    grids:",
        "      ladder: {" + f"sigma_min: {found.sigma_min:.2g}, sigma_max: {found.sigma_max:.3g}" + "}",
    ]
    return "\n".join(rows)


def _normal(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "no distribution: e1 wins nothing over e0"
    return f"P_mean {mean:.2f}, P_std {deviation:.2f}"
