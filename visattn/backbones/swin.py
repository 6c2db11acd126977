"""The Swin Transformer: attention within windows that shift from block to block, on maps that shrink by stages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention import WindowAttention
from visattn.backbones.blocks import BlockDesign, TransformerBlock
from visattn.backbones.embedding import PatchEmbedding
from visattn.backbones.features import Backbone, Features, as_pair, constructor_arguments
from visattn.backbones.layers import drop_path_rates, initialize


class SwinTransformer(Backbone):
    """Images (B, channels, H, W) to `Features` with one map per stage, of stride `patch_size` * 2**stage.

    Args:
        image_size: height and width in pixels, or one number; windows are no larger than the maps of such images.
        patch_size: side of a patch in pixels.
        dim: channels of the first stage; each further stage doubles them.
        depths: blocks of each stage; every second block shifts its windows by half.
        num_heads: attention heads of each stage.
        window_size: side of a window in tokens, of all stages or one for each.
        head_dim: channels of a head; None divides the stage's channels by its heads.
        mlp_ratio: hidden channels of the MLP / channels.
        qkv_bias: biases of query, key and value.
        in_channels: of the images.
        padding: where a window doesn't divide a map, "after_shift" pads the shifted map (as timm does) and
            "before_shift" pads, then shifts (as transformers and Swin's own detection code do).
        norm_eps: epsilon of all norms.
        dropout, attention_dropout: probabilities within MLP and attention, in training.
        drop_path: probability that a sample skips a branch of the last block in training; rises linearly from 0.

    Raises:
        ValueError: depths, num_heads and window_size don't describe the same number of stages.

    Source: Liu et al. 2021, https://arxiv.org/abs/2103.14030.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        *,
        window_size: int | Sequence[int] = 7,
        head_dim: int | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        in_channels: int = 3,
        padding: str = "after_shift",
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__()
        self.arguments = arguments
        windows = (window_size,) * len(depths) if isinstance(window_size, int) else tuple(window_size)
        if not len(depths) == len(num_heads) == len(windows):
            raise ValueError(f"depths {depths}, num_heads {num_heads} and window_size {window_size} differ in stages")
        if padding not in ("after_shift", "before_shift"):
            raise ValueError(f"padding {padding!r} is unknown; choose after_shift or before_shift")
        self.image_size = as_pair(image_size)
        self.channels = tuple(dim * 2**stage for stage in range(len(depths)))
        self.strides = tuple(patch_size * 2**stage for stage in range(len(depths)))
        self.depths = tuple(depths)
        self.num_features = self.channels[-1]
        self.num_prefix_tokens = 0
        self.num_layers = sum(depths) + 1

        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.patch_embedding = PatchEmbedding(in_channels, dim, patch_size, norm=norm(dim))
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for index, (channels, stride, depth, heads) in enumerate(
            zip(self.channels, self.strides, depths, num_heads, strict=True)
        ):
            design = BlockDesign(channels, mlp_ratio, norm_eps=norm_eps, dropout=dropout)
            height, width = (-(-side // stride) for side in self.image_size)  # of the map
            window = (min(windows[index], height), min(windows[index], width))
            attention = partial(
                WindowAttention,
                channels,
                heads,
                window_size=window,
                head_dim=head_dim,
                qkv_bias=qkv_bias,
                dropout=attention_dropout,
            )
            shifts = ((0, 0), (window[0] // 2, window[1] // 2))
            self.stages.append(
                SwinStage(
                    None if index == 0 else PatchMerging(channels // 2, norm(2 * channels)),
                    [
                        SwinBlock(design, attention, next(rates), window, shifts[block % 2], padding)
                        for block in range(depth)
                    ],
                )
            )
        self.norm = norm(self.num_features)
        self.initialize()

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


class SwinStage(nn.Module):
    """Patch merging, if there is any, and the blocks on the resulting map; tokens and grid in and out."""

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


class PatchMerging(nn.Module):
    """Joins 2x2 tokens into one of twice the channels; an odd side is padded with zeros.

    (B, height * width, dim) -> (B, ceil(height / 2) * ceil(width / 2), 2 * dim).
    """

    def __init__(self, dim: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        cells = tokens.unflatten(1, grid)  # (B, height, width, dim)
        if grid[0] % 2 or grid[1] % 2:
            cells = functional.pad(cells, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
        batch, height, width, dim = cells.shape
        cells = cells.reshape(batch, height // 2, 2, width // 2, 2, dim)
        cells = cells.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)  # down the columns first, as published
        return self.reduction(self.norm(cells)), (height // 2, width // 2)


class SwinBlock(TransformerBlock):
    """A transformer block whose windows cover a padded map where they don't divide it.

    The padding are zeros behind the norm; they take part as keys, as in the published networks.
    """

    def __init__(
        self,
        design: BlockDesign,
        attention: partial,
        drop_path: float,
        window_size: tuple[int, int],
        shift: tuple[int, int],
        padding: str,
    ) -> None:
        super().__init__(design, partial(attention, shift=shift), drop_path)
        self.window_size, self.shift, self.padding = window_size, shift, padding

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = self.add(tokens, self.attend(self.norm1(tokens), grid), self.layer_scale1)
        return self.add(tokens, self.mlp(self.norm2(tokens)), self.layer_scale2)

    def attend(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attention on tokens (B, height * width, dim), padded for it where a window doesn't divide the map."""
        padded = self.padded(grid)
        if padded == grid:
            return self.attention(tokens, grid)
        cells = self.pad(tokens.unflatten(1, grid))  # (B, padded height, padded width, dim)
        cells = self.attention(cells.flatten(1, 2), padded).unflatten(1, padded)
        return self.crop(cells, grid).flatten(1, 2)

    def padded(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that windows divide."""
        sides = tuple(side + -side % min(window, side) for side, window in zip(grid, self.window_size, strict=True))
        return sides[0], sides[1]

    def pad(self, cells: Tensor) -> Tensor:
        """Cells (B, height, width, dim) with zeros where the windows need more: (B, padded height, padded width, dim).

        The attention shifts the padded map. To pad the shifted map instead, this shifts, pads, and shifts back.
        """
        grid = (cells.shape[1], cells.shape[2])
        height, width = self.padded(grid)
        ahead = self.shift_ahead(grid)
        cells = torch.roll(cells, (-ahead[0], -ahead[1]), dims=(1, 2)) if any(ahead) else cells
        cells = functional.pad(cells, (0, 0, 0, width - grid[1], 0, height - grid[0]))
        return torch.roll(cells, ahead, dims=(1, 2)) if any(ahead) else cells

    def crop(self, cells: Tensor, grid: tuple[int, int]) -> Tensor:
        """Undoes `pad`: (B, padded height, padded width, dim) to (B, height, width, dim)."""
        ahead = self.shift_ahead(grid)
        cells = torch.roll(cells, (-ahead[0], -ahead[1]), dims=(1, 2)) if any(ahead) else cells
        cells = cells[:, : grid[0], : grid[1]]
        return torch.roll(cells, ahead, dims=(1, 2)) if any(ahead) else cells

    def shift_ahead(self, grid: tuple[int, int]) -> tuple[int, int]:
        """How far the map is shifted before it is padded; (0, 0) where padding comes first."""
        down, right = (
            shift if self.padding == "after_shift" and side > window else 0
            for shift, side, window in zip(self.shift, grid, self.window_size, strict=True)
        )
        return down, right


def swin_tiny(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> SwinTransformer:
    """Swin-T, 27.5 M parameters; below 64 pixels patches of 2 and windows of 4.

    Source: Liu et al. 2021, https://arxiv.org/abs/2103.14030, section 3.3.
    """
    small = min(as_pair(image_size)) < 64
    arguments: dict[str, Any] = {"window_size": 4 if small else 7} | overrides
    return SwinTransformer(image_size, patch_size or (2 if small else 4), **arguments)


def swin_small(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> SwinTransformer:
    """Swin-S, 48.8 M parameters: `swin_tiny` with 18 blocks in the third stage."""
    return swin_tiny(image_size, patch_size, **{"depths": (2, 2, 18, 2)} | overrides)


def swin_base(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> SwinTransformer:
    """Swin-B, 86.7 M parameters: `swin_small` with 128 channels."""
    return swin_small(image_size, patch_size, **{"dim": 128, "num_heads": (4, 8, 16, 32)} | overrides)
