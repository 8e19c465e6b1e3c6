"""Published speeds of the paper's network, from which plans estimate that of any other. Free of torch."""

from edm.config import NetworkConfig, TrainingConfig
from edm.networks.flops import flops

#: Configuration F on CIFAR-10: 200 Mimg in two days on eight V100s, and 26 images per second of 35 evaluations on one.
ANCHOR = TrainingConfig(resolution=32, channels=3, classes=10, augment=0.12)
ANCHOR_TRAINING = 145.0  # images per second and GPU
ANCHOR_EVALUATIONS = 26.0 * 35
#: Dense TFLOPS of NVIDIA's data sheets (SXM modules): of fp32 without tensor cores, and of fp16 on tensor cores.
PEAKS = {"v100": (15.7, 125.0), "a100": (19.5, 312.0), "h100": (67.0, 989.0)}


def evaluations_per_second(network: NetworkConfig, gpu: str = "v100") -> float:
    """Network evaluations of one image per second on one GPU of ``PEAKS``, in fp32: an estimate from the paper's V100.

    The same on every machine: no measurement counts. Example: ``evaluations_per_second(ANCHOR.network(), "h100")``.
    """
    return ANCHOR_EVALUATIONS * PEAKS[gpu][0] / PEAKS["v100"][0] * flops(ANCHOR) / flops(network)
