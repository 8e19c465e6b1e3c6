"""Generated image sets and weights, and torch-fidelity's own metrics of them for comparison."""

from pathlib import Path

import torch
from torch.utils.data import Dataset


class Images(Dataset):
    """A dataset of uint8 images, as torch-fidelity's input."""

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def smooth_images(count: int, seed: int, contrast: float) -> torch.Tensor:
    """Coloured blobs, uint8 [count, 3, 32, 32]: unlike noise, they differ from one another after pooling."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.randn(count, 3, 4, 4, generator=generator) * contrast + 128
    return torch.nn.functional.interpolate(blobs, size=32, mode="bicubic").clamp(0, 255).to(torch.uint8)


def untrained_inception(folder: Path) -> Path:
    """Random weights in the layout of torch-fidelity's Inception-v3, scaled so that images stay distinguishable."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_args, **_kwargs):
            """Keeps the initial weights instead of loading a file."""

    torch.save({}, folder / "empty.pth")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = Untrained("inception-v3-compat", ["2048"], folder / "empty.pth")
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # running statistics become those of the batch below
        images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
        with torch.no_grad():
            network.train()(images)
    torch.save(network.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def torch_fidelitys_measures(
    generated: torch.Tensor, real: torch.Tensor, extractor: str, weights: Path, batch_size: int = 16, **asked
) -> dict[str, float]:
    """torch-fidelity's metrics for the options ``asked`` (fid, isc, kid, prc, and settings), by its own names."""
    import torch_fidelity

    import edm.metrics.digits  # noqa: F401  # registers the classifier

    return torch_fidelity.calculate_metrics(
        input1=Images(generated),
        input2=Images(real),
        feature_extractor=extractor,
        feature_extractor_weights_path=weights,
        cuda=False,
        save_cpu_ram=True,  # no worker processes
        batch_size=batch_size,
        verbose=False,
        **asked,
    )
