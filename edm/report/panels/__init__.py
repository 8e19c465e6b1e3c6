"""Every kind of figure as a function of plain data, the path to write, and the list of written files.

The functions do not know the source of the numbers. Every function writes ``path`` with the suffixes .png and .svg and
appends both to ``written``. Each is imported at its first use: figures of numbers need no torch.
"""

from importlib import import_module

_ROOMS = {
    "advice": "data",
    "curves": "lines",
    "bits_of_models": "lines",
    "bits_per_level": "lines",
    "loss_levels": "lines",
    "degradation_grid": "grids",
    "leakage_sheet": "grids",
    "listed": "lines",
    "noisy_grid": "grids",
    "pairs_sheet": "grids",
    "sheets": "grids",
    "trajectories": "sketches",
    "truncation": "sketches",
}
__all__ = list(_ROOMS)


def __getattr__(name: str):
    if name in _ROOMS:
        return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
