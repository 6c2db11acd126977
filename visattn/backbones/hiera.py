"""Hiera: plain transformer blocks on maps that shrink by stages, where attention itself pools its queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention import MaskUnitAttention
from visattn.backbones.blocks import Block, BlockDesign
from visattn.backbones.embedding import OverlappingEmbedding, resample_positions
from visattn.backbones.features import Backbone, Features, as_pair, constructor_arguments, stage_patch_size
from visattn.backbones.layers import drop_path_rates, initialize


class Hiera(Backbone):
    """Images (B, channels, H, W) to `Features` with one map per stage, of stride `patch_size` * 2**stage.

    Behind the overlapping patches there are neither convolutions nor relative positions. The first stages attend in
    mask units, the last ones globally; the first block of each further stage pools 2x2 queries, doubles the channels,
    and looks as far as the stage before it.

    Args:
        image_size: height and width in pixels, or one number, that the position embeddings are made for.
        patch_size: pixels per token of the first stage along one axis; the patches themselves overlap.
        dim: channels of the first stage; each further stage doubles them.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        unit_size: side of a mask unit in tokens of the first stage; each further stage halves it.
        unit_attention: which stages attend within units.
        widening: what is added to pooled attention, and has twice the channels of its input: "projection", the maxima
            of a linear map of the normalised tokens, or "pooling", maxima and means of the tokens side by side.
        position_grid: (height, width) of the table of position embeddings, or one number, for a table that is stretched
            over every map; None makes it as large as the map.
        unit_positions: a second table, of the places within a unit, which is repeated over the map.
        position_antialias: low-pass filter when position embeddings shrink (timm does, transformers doesn't).
        stem_dim: channels of two 3x3 convolutions with batch norms at the full resolution, before the first patches,
            which small images need; None leaves them out, as published.
        mlp_ratio: hidden channels of the MLP / channels.
        layer_scale: initial value of a learned factor per channel on each branch; None leaves it out.
        in_channels: of the images.
        norm_eps: epsilon of all norms.
        dropout, attention_dropout: probabilities within MLP and attention, in training.
        drop_path: probability that a sample skips a branch of the last block in training; rises linearly from 0.

    Raises:
        ValueError: depths, num_heads and unit_attention don't describe the same number of stages, units can't be halved
            from stage to stage, or widening is unknown.

    Source: Ryali et al. 2023, https://arxiv.org/abs/2306.00989; stretched and repeated position embeddings:
        Bolya et al. 2023, https://arxiv.org/abs/2311.05613.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        dim: int = 96,
        depths: Sequence[int] = (1, 2, 7, 2),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        *,
        unit_size: int = 8,
        unit_attention: Sequence[bool] = (True, True, False, False),
        widening: str = "projection",
        position_grid: int | Sequence[int] | None = None,
        unit_positions: bool = False,
        position_antialias: bool = True,
        stem_dim: int | None = None,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        in_channels: int = 3,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__()
        self.arguments = arguments
        if not len(depths) == len(num_heads) == len(unit_attention):
            raise ValueError(
                f"depths {depths}, num_heads {num_heads} and unit_attention {unit_attention} differ in stages"
            )
        if unit_size < 1 or unit_size % 2 ** (len(depths) - 1):
            raise ValueError(f"unit_size {unit_size} can't be halved {len(depths) - 1} times, from stage to stage")
        if widening not in ("projection", "pooling"):
            raise ValueError(f"widening {widening!r} is unknown; choose projection or pooling")
        self.image_size = as_pair(image_size)
        self.channels = tuple(dim * 2**stage for stage in range(len(depths)))
        self.strides = tuple(patch_size * 2**stage for stage in range(len(depths)))
        self.num_features = self.channels[-1]
        self.num_prefix_tokens = 0
        self.num_layers = sum(depths) + 1
        self.unit_size, self.position_antialias = unit_size, position_antialias

        self.patch_embedding = OverlappingEmbedding(in_channels, dim, patch_size, stem_dim=stem_dim)
        table = tuple(-(-side // patch_size) for side in self.image_size) if position_grid is None else position_grid
        self.grid = as_pair(table)
        self.position_embedding = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], dim))
        self.unit_position_embedding = nn.Parameter(torch.empty(1, unit_size**2, dim)) if unit_positions else None
        self.blocks = nn.ModuleList()
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        for stage, channels in enumerate(self.channels):
            design = BlockDesign(channels, mlp_ratio, norm_eps=norm_eps, layer_scale=layer_scale, dropout=dropout)
            for index in range(depths[stage]):
                pools = stage > 0 and index == 0
                looks = stage - 1 if pools else stage  # the stage whose units these are
                attention = partial(
                    MaskUnitAttention,
                    channels // 2 if pools else channels,
                    num_heads[stage],
                    unit_size=unit_size >> looks if unit_attention[looks] else None,
                    query_stride=2 if pools else 1,
                    out_dim=channels,
                    dropout=attention_dropout,
                )
                self.blocks.append(HieraBlock(design, attention, next(rates), widening=widening if pools else None))
        self.stage_ends = tuple(sum(depths[: stage + 1]) for stage in range(len(depths)))
        self.norm = design.new_norm()
        self.initialize()

    def initialize(self) -> None:
        """Draws new weights, normal with standard deviation 0.02; the last layer of a branch is smaller with depth.

        Source: the latter is that of BEiT (Bao et al. 2022, https://arxiv.org/abs/2106.08254), section 2.5.
        """
        self.apply(initialize)
        block: Any
        for depth, block in enumerate(self.blocks, start=1):
            for layer in (block.attention.projection, block.mlp.fc2):
                layer.weight.data /= math.sqrt(2 * depth)
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        if self.unit_position_embedding is not None:
            nn.init.trunc_normal_(self.unit_position_embedding, std=0.02)

    def forward(self, images: Tensor) -> Features:
        """Images (B, channels, H, W) of any size to `Features`; `pooled` alone is normalised, as published."""
        tokens, grid = self.patch_embedding(images)  # (B, height * width, dim)
        tokens = tokens + self.positions(grid)
        block: Any
        maps = []
        for index, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, grid)  # (B, N_i, C_i)
            grid = block.attention.pooled_grid(grid)
            if index in self.stage_ends:
                maps.append(tokens.transpose(1, 2).unflatten(2, grid))  # (B, C_i, height, width)
        return Features(tuple(maps), tokens, self.norm(tokens.mean(dim=1)))

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """What is added to tokens of this grid: (1, height * width, dim)."""
        positions = resample_positions(self.position_embedding, self.grid, grid, self.position_antialias)
        if self.unit_position_embedding is None:
            return positions
        unit = self.unit_position_embedding.unflatten(1, (self.unit_size, self.unit_size))
        rows, columns = (-(-side // self.unit_size) for side in grid)
        repeated = unit.repeat(1, rows, columns, 1)[:, : grid[0], : grid[1]]  # (1, height, width, dim)
        return positions + repeated.flatten(1, 2)

    def layer_of(self, parameter_name: str) -> int:
        """0 for the embeddings, i for the i-th block (from 1) of all stages; the final norm goes with the last."""
        if parameter_name.startswith("blocks."):
            return int(parameter_name.split(".")[1]) + 1
        return self.num_layers - 1 if parameter_name.startswith("norm.") else 0


class HieraBlock(Block):
    """Mask-unit attention, then an MLP, each on normalised tokens; the attention may make a coarser and wider map.

    Args:
        design, make_attention, drop_path: see `Block`; the design is that of the tokens that come out.
        widening: None, or for attention that pools queries what is added to it, see `Hiera`.
    """

    def __init__(
        self, design: BlockDesign, make_attention: Callable[[], Any], drop_path: float = 0.0, *, widening: str | None
    ) -> None:
        super().__init__(design, make_attention, drop_path)
        dim = design.dim if widening is None else design.dim // 2
        self.widens = widening is not None
        self.norm1 = design.new_norm(dim)
        self.expansion = nn.Linear(dim, design.dim) if widening == "projection" else None
        self.attention = design.new_attention(make_attention)
        self.layer_scale1 = design.new_scale()
        self.norm2 = design.new_norm()
        self.mlp = design.new_mlp()
        self.layer_scale2 = design.new_scale()

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, height * width, dim) of the grid (height, width) to those of `attention.pooled_grid(grid)`."""
        normed = self.norm1(tokens)
        if self.widens:
            tokens = self.widened(tokens, normed, grid)
        tokens = self.add(tokens, self.attention(normed, grid), self.layer_scale1)
        return self.add(tokens, self.mlp(self.norm2(tokens)), self.layer_scale2)

    def widened(self, tokens: Tensor, normed: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, height * width, dim) to (B, ceil(height / 2) * ceil(width / 2), 2 * dim)."""
        wide = tokens if self.expansion is None else self.expansion(normed)
        cells = wide.transpose(1, 2).unflatten(2, grid)  # (B, channels, height, width)
        pooled = functional.max_pool2d(cells, 2, ceil_mode=True)
        if self.expansion is None:
            pooled = torch.cat([pooled, functional.avg_pool2d(cells, 2, ceil_mode=True)], dim=1)
        return pooled.flatten(2).transpose(1, 2)


def hiera_32(image_size: int | Sequence[int] = 32, patch_size: int | None = None, **overrides: Any) -> Hiera:
    """Three stages of 64, 128 and 256 channels behind two convolutions, for images of 32 pixels; 3.0 M parameters.

    Patches of 2 pixels, from 64 pixels on of 4.
    """
    arguments: dict[str, Any] = {
        "dim": 64,
        "depths": (2, 3, 3),
        "num_heads": (2, 4, 8),
        "unit_attention": (True, False, False),
        "stem_dim": 32,
    } | overrides
    return Hiera(image_size, patch_size or stage_patch_size(image_size), **arguments)


def hiera_tiny(image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any) -> Hiera:
    """Hiera-T, 27.1 M parameters, 27.9 M with ImageNet's classifier; below 64 pixels patches of 2.

    Source: Ryali et al. 2023, https://arxiv.org/abs/2306.00989, table 2.
    """
    return Hiera(image_size, patch_size or stage_patch_size(image_size), **overrides)
