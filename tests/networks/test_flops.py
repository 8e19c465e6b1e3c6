"""The counts of FLOPs and weights against the networks themselves, and against the paper's sizes."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from edm.config import NetworkConfig, TrainingConfig
from edm.networks.flops import flops, parameters, training_flops
from edm.networks.unet import UNet

ADM = {"channels": 3, "classes": 1000, "model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3,
       "attn_resolutions": (32, 16, 8)}  # fmt: skip
PAPER = {
    f"{architecture}-{resolution}-{name}": NetworkConfig.of(architecture, resolution=resolution, **size)
    for architecture in ("ddpmpp", "ncsnpp")
    for resolution, name, size in (
        (32, "A", {"channel_mult": (1, 2, 2, 2)}),
        (32, "F", {"channel_mult": (2, 2, 2), "classes": 10, "augment_dim": 9}),
        (64, "A", {"channel_mult": (1, 1, 2, 2, 2)}),
        (64, "F", {"channel_mult": (1, 2, 2, 2), "augment_dim": 9}),
    )
} | {"adm-64": NetworkConfig.of("adm", resolution=64, **ADM)}
SMALL = {
    f"{architecture}-{i}": NetworkConfig.of(architecture, **{"num_blocks": 1, "attn_resolutions": (4,), **size})
    for architecture in ("ddpmpp", "ncsnpp", "adm")
    for i, size in enumerate((
        {"resolution": 8, "channels": 1, "model_channels": 8, "channel_mult": (1, 2)},
        {"resolution": 8, "channels": 1, "model_channels": 16, "channel_mult": (2,), "classes": 3},
        {"resolution": 16, "model_channels": 64, "channel_mult": (1, 1, 3), "num_blocks": 2, "augment_dim": 9},
        {"resolution": 16, "model_channels": 12, "channel_mult": (3, 1), "attn_resolutions": (16, 8), "classes": 5,
         "augment_dim": 9, "out_channels": 6},
        {"resolution": 32, "model_channels": 8, "channel_mult": (1, 2, 2, 4), "resample_filter": (1, 3, 3, 1)},
        {"resolution": 16, "model_channels": 8, "channel_mult": (1, 2), "attn_resolutions": (), "residual_input": True},
        {"resolution": 16, "model_channels": 64, "channel_mult": (2, 4), "channels_per_head": 32, "norm_groups": 32},
    ))
}  # fmt: skip


@pytest.mark.parametrize("config", (PAPER | SMALL).values(), ids=(PAPER | SMALL).keys())
@pytest.mark.first(3)
def test_the_counts_are_those_of_the_network_itself(config):
    """torch's counter watches a forward pass on the meta device, where nothing is computed."""
    with torch.device("meta"):
        network = UNet(config).eval()
        x, c_noise = torch.empty(1, config.channels, config.resolution, config.resolution), torch.empty(1)
        labels = torch.empty(1, config.classes) if config.classes else None
        augment = torch.empty(1, config.augment_dim) if config.augment_dim else None
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(x, c_noise, labels, augment)
    assert flops(config) == counter.get_total_flops()
    assert parameters(config) == sum(p.numel() for p in network.parameters())


def test_the_papers_networks_have_the_papers_sizes():
    """Table 8: 55.7 M and 61.8 M weights from configuration C on, 62 to 68 M before; ADM 295 to 296 M."""
    millions = {name: parameters(config) / 1e6 for name, config in PAPER.items()}
    assert round(millions["ddpmpp-32-F"], 1) == 55.7 and round(millions["ddpmpp-64-F"], 1) == 61.8
    assert all(61.7 < millions[f"{name}-32-A"] < 63 for name in ("ddpmpp", "ncsnpp"))
    assert all(66.7 < millions[f"{name}-64-A"] < 68 for name in ("ddpmpp", "ncsnpp"))
    assert 295 < millions["adm-64"] < 296


def test_configuration_f_on_cifar10_costs_127_gflop_per_training_image():
    config = TrainingConfig(resolution=32, channels=3, classes=10, augment=0.12)
    assert round(training_flops(config) / 1e9) == 127
    assert flops(config) == flops(config.network()) == training_flops(config) / 3
    assert parameters(config) == parameters(config.network())


def test_a_plan_is_counted_without_torch():
    code = "import sys, edm.networks.flops, edm.chain.throughput\n"
    code += "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
