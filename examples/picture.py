"""From a checkpoint to a picture, with the library alone: python examples/picture.py CHECKPOINT PICTURE

CHECKPOINT: any file that `edm.load` reads, of this program or published. PICTURE: a PNG of 4 rows of 8 images.
"""

import sys

import torch
from PIL import Image

import edm


def draw(checkpoint: str, picture: str, rows: int = 4, columns: int = 8) -> None:
    """Samples rows × columns images with the paper's deterministic sampler and writes them as one picture."""
    net = edm.load(checkpoint, device="cuda" if torch.cuda.is_available() else "cpu")
    shape = net.network.config
    torch.manual_seed(0)
    latents = torch.randn(rows * columns, shape.channels, shape.resolution, shape.resolution).to(net.device)
    labels = torch.arange(rows * columns).to(net.device) % shape.classes if shape.classes else None
    images = edm.sample(net, latents, labels, num_steps=18)  # float64, about [−1, 1]
    pixels = (images * 127.5 + 128).clip(0, 255).to(torch.uint8).cpu()
    tiles = pixels.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2)  # row, y, column, x, channel
    sheet = tiles.reshape(rows * shape.resolution, columns * shape.resolution, shape.channels)
    Image.fromarray(sheet.squeeze(-1).numpy()).save(picture)


if __name__ == "__main__":
    draw(*sys.argv[1:])
