"""Diffusion models in the EDM design space (Karras et al. 2022): train, sample, score, compare.

The names below are the stable interface. Each is imported at its first use, so ``import edm`` is fast.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "sample": "edm.sampling.library",
    "log_likelihood": "edm.sampling.likelihood",
    "invert": "edm.sampling.likelihood",
    "interpolate": "edm.sampling.likelihood",
    "SamplerConfig": "edm.config",
    "TrainingConfig": "edm.config",
    "NetworkConfig": "edm.config",
    "Dataset": "edm.data.archive",
    "train": "edm.training.library",
    "evaluate": "edm.evaluation.library",
    "frechet_distance": "edm.metrics.between",
    "augment_with": "edm.design.augmentation",
    "IdealDenoiser": "edm.models.ideal",
    "Denoiser": "edm.models.denoiser",
    "load": "edm.foreign",
    "from_published": "edm.foreign.published",
    "register": "edm.registry",
    "UserError": "edm.errors",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'edm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
