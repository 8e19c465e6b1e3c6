"""Decides whether to compile a network (torch.compile). Compiling takes minutes and changes results by rounding."""

from typing import TypedDict

import torch

from edm.config import AUTO, COMPILE, NetworkConfig
from edm.errors import UserError
from edm.models.denoiser import Denoiser
from edm.networks.flops import flops

#: Minimum FLOPs of all network evaluations for which compiling is worthwhile. An estimate that assumes one to two
#: minutes of compilation and a third of the time saved, on a GPU that reaches 50 to 100 TFLOP/s without compiling; not
#: yet measured on a GPU (bench/training.py).
PAYS = 2e16


class Compiled(TypedDict):
    """Keyword arguments of ``torch.compile``."""

    mode: str


def options(choice: str, network: NetworkConfig, evaluations: float, device: torch.device) -> Compiled | None:
    """Keyword arguments of ``torch.compile`` for a choice of ``COMPILE``, or None for no compilation.

    evaluations: total number of single-image network evaluations of the work; a backward pass counts as two.
    Raises UserError for an unknown choice.
    """
    if choice not in COMPILE:
        raise UserError(f"compile is {choice!r}; choose one of {', '.join(COMPILE)}")
    if choice == AUTO:
        choice = "yes" if device.type == "cuda" and evaluations * flops(network) >= PAYS else "no"
    if choice == "no":
        return None
    return {"mode": "reduce-overhead"} if choice == "graphs" and device.type == "cuda" else {"mode": "default"}


def prepare(denoiser: Denoiser, precision: str, choice: str, evaluations: float) -> Denoiser:
    """Sets the precision of a denoiser (of :data:`edm.networks.precision.DTYPES`), compiles it if chosen, returns it.

    evaluations: as in :func:`options`. Jobs that share the images of one evaluation pass the total of the whole
    evaluation, so that all make the same choice. Its ``guides`` are prepared in the same way.
    """
    for guide in denoiser.guides.values():
        prepare(guide, precision, choice, evaluations)
    denoiser.precision = precision
    compiled = options(choice, denoiser.network.config, evaluations, denoiser.device)
    if compiled is not None:
        denoiser.network.compile(**compiled)
    return denoiser
