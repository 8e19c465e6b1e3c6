"""The U-Nets of Table 8: DDPM++, NCSN++ and ADM as one family."""

from edm.config import NetworkConfig
from edm.networks.unet import UNet

__all__ = ["NetworkConfig", "UNet"]
