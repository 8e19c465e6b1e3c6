"""Whether a network is compiled (torch.compile) before it runs. That changes results by rounding, and takes minutes."""

from typing import TypedDict

import torch

from edm.config import AUTO, COMPILE, NetworkConfig
from edm.errors import UserError
from edm.models.denoiser import Denoiser
from edm.networks.flops import flops

#: FLOPs of network evaluations from which compiling pays, where it takes a minute or two and saves a third of the time
#: of a GPU that does 50 to 100 TFLOP/s without: an estimate, until bench/training.py has told better on one.
PAYS = 2e16


class Compiled(TypedDict):
    """Keyword arguments of ``torch.compile``."""

    mode: str


def options(choice: str, network: NetworkConfig, evaluations: float, device: torch.device) -> Compiled | None:
    """Keyword arguments of ``torch.compile`` for a choice of ``COMPILE``, or None where nothing is to be compiled.

    evaluations: of the network for one image, of all that the choice is for; a backward pass counts as two.
    Raises UserError for another choice.
    """
    if choice not in COMPILE:
        raise UserError(f"compile is {choice!r}; choose one of {', '.join(COMPILE)}")
    if choice == AUTO:
        choice = "yes" if device.type == "cuda" and evaluations * flops(network) >= PAYS else "no"
    if choice == "no":
        return None
    return {"mode": "reduce-overhead"} if choice == "graphs" and device.type == "cuda" else {"mode": "default"}


def prepare(denoiser: Denoiser, precision: str, choice: str, evaluations: float) -> Denoiser:
    """The same denoiser, set to a precision (of :data:`edm.networks.precision.DTYPES`) and compiled if so chosen.

    evaluations: as in :func:`options`. Jobs that share the images of one evaluation name those of all of it: then they
    choose alike.
    """
    denoiser.precision = precision
    compiled = options(choice, denoiser.network.config, evaluations, denoiser.device)
    if compiled is not None:
        denoiser.network.compile(**compiled)
    return denoiser
