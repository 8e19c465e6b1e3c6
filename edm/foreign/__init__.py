"""Checkpoints of other programs: read safely, written for them, and any plain callable as a denoiser.

``read`` and ``convert`` take the files of the EDM authors, of score_sde and of guided-diffusion; ``export`` writes ours
under the published names; ``DiscreteDenoiser`` wraps a model of diffusers' kind. No byte of a file is ever executed.
Each is imported when first used: the catalogue of published files needs no torch.
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
