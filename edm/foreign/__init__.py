"""Imports checkpoints of other programs, exports checkpoints for them, and wraps callables as denoisers.

``read`` and ``convert`` accept the files of the EDM authors, of score_sde and of guided-diffusion; ``export`` writes a
checkpoint of this program under the published names; ``DiscreteDenoiser`` wraps a model in the style of diffusers. No
byte of a file is ever executed. Each name is imported on first use, since commands need
:mod:`edm.foreign.asked` without torch.
"""

from importlib import import_module

_ROOMS = {
    "DiscreteDenoiser": "adapter",
    "Imported": "importing",
    "convert": "importing",
    "export": "exporting",
    "load": "importing",
    "read": "importing",
}
__all__ = list(_ROOMS)


def __getattr__(name: str):
    if name in _ROOMS:
        return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
