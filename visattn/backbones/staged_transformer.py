"""What Swin, Swin V2, NAT and DiNAT have in common: tokens go through stages of blocks, on maps that shrink."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from visattn.backbones.features import Backbone, Features
from visattn.backbones.layers import initialize


class StagedTransformer(Backbone):
    """Images (B, channels, H, W) to `Features` with one map per stage.

    A kind of it makes the modules.

    Attributes:
        patch_embedding: images to tokens (B, N, channels) and their (height, width).
        stages: of `TransformerStage`, the first without downsampling.
        norm: of the last stage's tokens.
        depths: blocks of each stage.
    """

    patch_embedding: nn.Module
    stages: nn.ModuleList
    norm: nn.Module
    depths: tuple[int, ...]

    def initialize(self) -> None:
        """Draws new weights, normal with standard deviation 0.02."""
        self.apply(initialize)

    def forward(self, images: Tensor) -> Features:
        """Images (B, channels, H, W) of any size to `Features`; the last map is normalised as `tokens` are."""
        tokens, grid = self.patch_embedding(images)  # (B, height * width, dim)
        maps = []
        for stage in self.stages:
            tokens, grid = stage(tokens, grid)  # (B, N_i, C_i)
            maps.append(tokens.transpose(1, 2).unflatten(2, grid))  # (B, C_i, height, width)
        tokens = self.norm(tokens)
        maps[-1] = tokens.transpose(1, 2).unflatten(2, grid)
        return Features(tuple(maps), tokens, tokens.mean(dim=1))

    def layer_of(self, parameter_name: str) -> int:
        """0 for the embedding, i for the i-th block (from 1) of all stages; a downsampling goes with the next block."""
        if parameter_name.startswith("norm."):
            return self.num_layers - 1
        if not parameter_name.startswith("stages."):
            return 0
        _, stage, part, *rest = parameter_name.split(".")
        before = sum(self.depths[: int(stage)])
        return before + 1 + (int(rest[0]) if part == "blocks" else 0)


class TransformerStage(nn.Module):
    """Downsampling, if there is any, and the blocks on the resulting map; tokens and grid in and out."""

    def __init__(self, downsample: nn.Module | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        if self.downsample is not None:
            tokens, grid = self.downsample(tokens, grid)
        for block in self.blocks:
            tokens = block(tokens, grid)
        return tokens, grid
