"""Swin V2: tokens of a window attend by cosines, biases fit windows of any size, and norms stand behind branches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from visattn.attention import CosineWindowAttention
from visattn.backbones.blocks import BlockDesign
from visattn.backbones.embedding import ConvolutionalEmbedding, PatchEmbedding
from visattn.backbones.features import as_pair, constructor_arguments
from visattn.backbones.swin import SwinBlock
from visattn.backbones.window_transformer import WindowStage, WindowTransformer, join_cells, plan_stages


class SwinTransformerV2(WindowTransformer):
    """Images (B, channels, H, W) to `Features` with one map per stage, of stride `patch_size` * 2**stage.

    Args:
        image_size, patch_size, dim, depths, num_heads, mlp_ratio, in_channels, padding, norm_eps, dropout,
            attention_dropout, drop_path: see `SwinTransformer`.
        window_size: side of a window in tokens, of all stages, or one for each or (vertical, horizontal) for each.
        reference_window_size: of each stage, the side of the windows that the weights were trained with first, which
            is the unit of the bias's coordinates; None is the window_size, no larger than the map.
        qkv_bias: biases of query and value.
        stem: "patch" (linear), or "convolution": 3x3 convolutions of stride 2, which train better on few small images.
        branch_scale: the initial factor of each branch, which is that of the norm behind it. With 0, as published, a
            new network begins as its patch mergings alone.

    Raises:
        ValueError: depths, num_heads and window sizes don't describe the same number of stages, or stem or padding is
            unknown.

    Source: Liu et al. 2022, https://arxiv.org/abs/2111.09883.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 256,
        patch_size: int = 4,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        *,
        window_size: int | Sequence[int | Sequence[int]] = 8,
        reference_window_size: Sequence[int | None] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        in_channels: int = 3,
        stem: str = "patch",
        branch_scale: float = 0.0,
        padding: str = "after_shift",
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        arguments = constructor_arguments(locals())
        if stem not in ("patch", "convolution"):
            raise ValueError(f"stem {stem!r} is unknown; choose patch or convolution")
        stages = plan_stages(image_size, patch_size, dim, depths, num_heads, window_size)
        references = (None,) * len(stages) if reference_window_size is None else tuple(reference_window_size)
        if len(references) != len(stages):
            raise ValueError(f"reference_window_size {references} has not one number for each of {len(stages)} stages")
        reference_of = dict(zip(stages, references, strict=True))
        norm = partial(nn.LayerNorm, eps=norm_eps)
        options: dict[str, Any] = {"qkv_bias": qkv_bias, "dropout": attention_dropout}

        def make_block(stage: WindowStage, shift: tuple[int, int], rate: float) -> SwinBlockV2:
            design = BlockDesign(stage.channels, mlp_ratio, norm_eps=norm_eps, dropout=dropout)
            reference = reference_of[stage]
            attention = partial(
                CosineWindowAttention, stage.channels, stage.num_heads, reference_window_size=reference, **options
            )
            block = SwinBlockV2(design, attention, rate, stage.window_size, shift, padding)
            nn.init.constant_(block.norm1.get_parameter("weight"), branch_scale)
            nn.init.constant_(block.norm2.get_parameter("weight"), branch_scale)
            return block

        super().__init__(
            image_size,
            stages,
            depths,
            patch_embedding=(
                PatchEmbedding(in_channels, dim, patch_size, norm=norm(dim))
                if stem == "patch"
                else ConvolutionalEmbedding(in_channels, dim, patch_size)
            ),
            patch_size=patch_size,
            norm=norm,
            make_block=make_block,
            make_merging=lambda channels: PatchMergingV2(channels, norm(2 * channels)),
            drop_path=drop_path,
        )
        self.arguments = arguments


class PatchMergingV2(nn.Module):
    """Joins 2x2 tokens into one of twice the channels, normalised behind; an odd side is padded with zeros.

    (B, height * width, dim) -> (B, ceil(height / 2) * ceil(width / 2), 2 * dim).
    """

    def __init__(self, dim: int, norm: nn.Module) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = norm

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        tokens, grid = join_cells(tokens, grid)
        return self.norm(self.reduction(tokens)), grid


class SwinBlockV2(SwinBlock):
    """A `SwinBlock` that normalises what attention and MLP give, not what they are given, as `PostNormBlock` does.

    Source: Liu et al. 2022, https://arxiv.org/abs/2111.09883, section 3.2.
    """

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = self.add(tokens, self.norm1(self.attend(tokens, grid)))
        return self.add(tokens, self.norm2(self.mlp(tokens)))


def swin_v2_tiny(
    image_size: int | Sequence[int] = 256, patch_size: int | None = None, **overrides: Any
) -> SwinTransformerV2:
    """SwinV2-T, 27.6 M parameters; below 64 pixels patches of 2.

    Source: Liu et al. 2022, https://arxiv.org/abs/2111.09883, section 4.1.
    """
    small = min(as_pair(image_size)) < 64
    return SwinTransformerV2(image_size, patch_size or (2 if small else 4), **overrides)


def swin_v2_small(
    image_size: int | Sequence[int] = 256, patch_size: int | None = None, **overrides: Any
) -> SwinTransformerV2:
    """SwinV2-S, 49.0 M parameters: `swin_v2_tiny` with 18 blocks in the third stage."""
    return swin_v2_tiny(image_size, patch_size, **{"depths": (2, 2, 18, 2)} | overrides)


def swin_v2_base(
    image_size: int | Sequence[int] = 256, patch_size: int | None = None, **overrides: Any
) -> SwinTransformerV2:
    """SwinV2-B, 86.9 M parameters: `swin_v2_small` with 128 channels."""
    return swin_v2_small(image_size, patch_size, **{"dim": 128, "num_heads": (4, 8, 16, 32)} | overrides)


def swin_v2_32(
    image_size: int | Sequence[int] = 32, patch_size: int | None = None, **overrides: Any
) -> SwinTransformerV2:
    """Swin V2 for images of 32 pixels, behind a convolution: maps of 16, 8 and 4 cells, 2.7 M parameters."""
    arguments: dict[str, Any] = {"dim": 64, "depths": (2, 4, 2), "num_heads": (2, 4, 8), "stem": "convolution"}
    small = min(as_pair(image_size)) < 64
    return SwinTransformerV2(image_size, patch_size or (2 if small else 4), **arguments | overrides)
