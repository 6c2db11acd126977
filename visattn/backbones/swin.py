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
from visattn.backbones.features import as_pair, constructor_arguments
from visattn.backbones.window_transformer import WindowStage, WindowTransformer, join_cells, plan_stages


class SwinTransformer(WindowTransformer):
    """Images (B, channels, H, W) to `Features` with one map per stage, of stride `patch_size` * 2**stage.

    Args:
        image_size: height and width in pixels, or one number; windows are no larger than the maps of such images.
        patch_size: side of a patch in pixels.
        dim: channels of the first stage; each further stage doubles them.
        depths: blocks of each stage; every second block shifts its windows by half.
        num_heads: attention heads of each stage.
        window_size: side of a window in tokens, of all stages, or one for each or (vertical, horizontal) for each.
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
        window_size: int | Sequence[int | Sequence[int]] = 7,
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
        norm = partial(nn.LayerNorm, eps=norm_eps)
        options: dict[str, Any] = {"head_dim": head_dim, "qkv_bias": qkv_bias, "dropout": attention_dropout}

        def make_block(stage: WindowStage, shift: tuple[int, int], rate: float) -> SwinBlock:
            design = BlockDesign(stage.channels, mlp_ratio, norm_eps=norm_eps, dropout=dropout)
            attention = partial(WindowAttention, stage.channels, stage.num_heads, **options)
            return SwinBlock(design, attention, rate, stage.window_size, shift, padding)

        super().__init__(
            image_size,
            plan_stages(image_size, patch_size, dim, depths, num_heads, window_size),
            depths,
            patch_embedding=PatchEmbedding(in_channels, dim, patch_size, norm=norm(dim)),
            patch_size=patch_size,
            norm=norm,
            make_block=make_block,
            make_merging=lambda channels: PatchMerging(channels, norm(4 * channels)),
            drop_path=drop_path,
        )
        self.arguments = arguments


class PatchMerging(nn.Module):
    """Joins 2x2 tokens into one of twice the channels, normalised before; an odd side is padded with zeros.

    (B, height * width, dim) -> (B, ceil(height / 2) * ceil(width / 2), 2 * dim).
    """

    def __init__(self, dim: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        tokens, grid = join_cells(tokens, grid)
        return self.reduction(self.norm(tokens)), grid


class SwinBlock(TransformerBlock):
    """A transformer block whose windows cover a padded map where they don't divide it.

    The padding are zeros behind the norm; they take part as keys, as in the published networks.

    Args:
        design, drop_path: see `Block`.
        attention: makes a `WindowAttention`, given its window_size and shift.
        window_size, shift: (vertical, horizontal) in tokens.
        padding: see `SwinTransformer`.

    Raises:
        ValueError: the padding is unknown.
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
        if padding not in ("after_shift", "before_shift"):
            raise ValueError(f"padding {padding!r} is unknown; choose after_shift or before_shift")
        super().__init__(design, partial(attention, window_size=window_size, shift=shift), drop_path)
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
