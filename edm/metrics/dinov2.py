"""DINOv2 features as torch-fidelity computes them, without the code that torch-fidelity would download and run.

torch-fidelity's extractor calls ``torch.hub.load``, which fetches the head of a GitHub branch and executes it, and it
does not accept a weights file. This module defines the network itself, reads the published weights as tensors only,
and uses torch-fidelity's forward pass: resizing to 224 pixels and normalisation.
Imports torch-fidelity, which takes seconds.
"""

from dataclasses import dataclass

import torch
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

from edm.metrics.vit import VisionTransformer

LAYER = "dinov2"  # torch-fidelity's name for the only layer


@dataclass(frozen=True)
class Published:
    """A published network: its architecture, and the URL and hash of its weights."""

    width: int
    depth: int
    heads: int
    url: str
    sha256: str


_BASE = "https://dl.fbaipublicfiles.com/dinov2"
PUBLISHED = {
    "dinov2-vit-s-14": Published(
        384, 12, 6, f"{_BASE}/dinov2_vits14/dinov2_vits14_pretrain.pth",
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    ),
    "dinov2-vit-b-14": Published(
        768, 12, 12, f"{_BASE}/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
        "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
    ),
    "dinov2-vit-l-14": Published(
        1024, 24, 16, f"{_BASE}/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    ),
}  # fmt: skip


class FeatureExtractorLocalDinoV2(FeatureExtractorDinoV2):
    """torch-fidelity's DINOv2 extractor with a given network. Takes uint8 images [N, 3, H, W]."""

    def __init__(self, name: str, network: torch.nn.Module) -> None:
        FeatureExtractorBase.__init__(self, name, [LAYER])  # the parent's __init__ would download the network
        self.feature_extractor_internal_dtype = torch.float32
        self.model = network
        self.requires_grad_(False)
        self.eval()


def build(name: str, state: dict[str, torch.Tensor]) -> FeatureExtractorLocalDinoV2:
    """The extractor ``name`` with the tensors of its published file. Raises RuntimeError if they do not match."""
    shape = PUBLISHED[name]
    with torch.device("meta"):  # allocates no parameters; the file's tensors replace them
        network = VisionTransformer(shape.width, shape.depth, shape.heads)
    network.load_state_dict(state, assign=True)
    return FeatureExtractorLocalDinoV2(name, network.float())
