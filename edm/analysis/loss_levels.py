"""The loss per noise level as training weights it (Figure 5a)."""

from collections.abc import Mapping, Sequence

import torch

from edm.design.losses import EDM


def weighted(curve: Mapping[str, Sequence[float]], sigma_data: float = EDM.sigma_data) -> dict[str, list[float]]:
    """{"sigma", "mean", "std"} of λ(σ) (D(y + n; σ) − y)² from the same of the unweighted error per pixel.

    λ(σ) = (σ² + σ_data²)/(σ σ_data)² of Table 1, under which a model of the EDM preconditioning starts at 1.
    """
    weight = EDM(sigma_data=sigma_data).weight(torch.tensor(curve["sigma"], dtype=torch.float64))
    scaled = {key: (weight * torch.tensor(curve[key], dtype=torch.float64)).tolist() for key in ("mean", "std")}
    return {"sigma": list(curve["sigma"]), **scaled}
