"""The vision transformer of DINOv2 (Oquab et al., 2023), features only, under the names of its published weights.

Defined here because torch-fidelity's way to load it runs downloaded code (see ``edm.metrics.dinov2``).
"""

import torch
from torch import nn
from torch.nn import functional as F

PATCH = 14  # side of a patch, in pixels
GRID = 37  # patches along one side at the training resolution, 518 pixels
OFFSET = 0.1  # the authors add this to the number of patches before they resize the position embeddings


class VisionTransformer(nn.Module):
    """Normalised images [N, 3, H, W], H and W multiples of 14 → class token [N, width] after the last norm."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # used only in training, but part of the published files
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, stride=PATCH)})
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed["proj"](images)
        positions = self.positions(*patches.shape[2:])
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).mT], dim=1) + positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])

    def positions(self, rows: int, columns: int) -> torch.Tensor:
        """Position embeddings [1, 1 + rows · columns, width], resized from those learned at 518 pixels."""
        if (rows, columns) == (GRID, GRID):
            return self.pos_embed
        width = self.pos_embed.shape[2]
        learned = self.pos_embed[:, 1:].mT.reshape(1, width, GRID, GRID)
        scale = ((rows + OFFSET) / GRID, (columns + OFFSET) / GRID)
        resized = F.interpolate(learned, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).mT], dim=1)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each on normalised tokens [N, T, width], scaled, and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = Scale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls2 = Scale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))


class Attention(nn.Module):
    """Self-attention over tokens [N, T, width], without fused kernels: they round float32 differently."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, width = x.shape
        per_head = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = per_head.permute(2, 0, 3, 1, 4)  # each [N, heads, T, width / heads]
        weights = (queries * (width // self.heads) ** -0.5 @ keys.mT).softmax(dim=-1)
        return self.proj((weights @ values).transpose(1, 2).reshape(n, tokens, width))


class Scale(nn.Module):
    """A learned factor per feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma
