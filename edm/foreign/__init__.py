"""Checkpoints of other programs: read safely, written for them, and any plain callable as a denoiser.

``read`` and ``convert`` take the files of the EDM authors, of score_sde and of guided-diffusion; ``export`` writes ours
under the published names; ``DiscreteDenoiser`` wraps a model of diffusers' kind. No byte of a file is ever executed.
"""

from edm.foreign.adapter import DiscreteDenoiser
from edm.foreign.exporting import export
from edm.foreign.importing import Imported, convert, load, read

__all__ = ["DiscreteDenoiser", "Imported", "convert", "export", "load", "read"]
