"""Every kind of figure as a function of plain data: what is drawn, where to write it, and the list of files written.

Nothing here knows where the numbers come from. Every function writes ``path`` with the suffixes .png and .svg and
appends both to ``written``.
"""

from edm.report.panels.curves import curves, loss_levels
from edm.report.panels.grids import degradation_grid, leakage_sheet, noisy_grid, sheets
from edm.report.panels.sketches import trajectories, truncation

__all__ = [
    "curves",
    "degradation_grid",
    "leakage_sheet",
    "loss_levels",
    "noisy_grid",
    "sheets",
    "trajectories",
    "truncation",
]
