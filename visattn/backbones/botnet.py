"""BoTNet: residual networks whose last blocks attend where others convolve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention import RelativePositionAttention
from visattn.backbones.conv_norm import ConvNorm, activate
from visattn.backbones.features import as_pair, constructor_arguments
from visattn.backbones.residual import Place, ResidualNetwork


class BoTNet(ResidualNetwork):
    """Images (B, in_channels, H, W) of any size to `Features` with one map for each stride of the stages.

    Args:
        image_size, patch_size, depths, widths, bottleneck, last_stride, stem, stem_width, activation, in_channels,
            drop_path: see `ResidualNetwork`.
        attention_blocks: for each stage, which of its blocks attend instead of convolving, counted from 0.
        num_heads: attention heads.
        key_dim: channels of a head's queries and keys; None divides the channels within a block by the heads, as the
            values always are.
        group_width: channels of a group of the 3x3 convolutions; None is one group.
        channel_attention: "none", or "efficient" behind each 3x3 convolution, see `EfficientChannelAttention`.
        attention_dropout: probability that an attention weight is dropped in training.

    Raises:
        ValueError: attention_blocks name blocks that don't exist, channels don't divide by the heads or the width of a
            group, or another argument is none of what is allowed.

    Source: Srinivas et al. 2021, https://arxiv.org/abs/2101.11605, section 3; a last stage of stride 1 as in its
        BoTNet-S1.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (256, 512, 1024, 2048),
        *,
        attention_blocks: Sequence[Sequence[int]] = ((), (), (), (0, 1, 2)),
        num_heads: int = 4,
        key_dim: int | None = None,
        bottleneck: float = 0.25,
        group_width: int | None = None,
        channel_attention: str = "none",
        last_stride: int = 1,
        stem: str = "single",
        stem_width: int = 64,
        activation: str = "relu",
        in_channels: int = 3,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        arguments = constructor_arguments(locals())
        if len(attention_blocks) != len(depths) or any(
            not set(chosen) <= set(range(depth)) for chosen, depth in zip(attention_blocks, depths, strict=False)
        ):
            raise ValueError(
                f"attention_blocks {arguments['attention_blocks']} must say for each stage which of its blocks attend, "
                f"counted from 0; depths are {tuple(depths)}"
            )
        if channel_attention not in ("none", "efficient"):
            raise ValueError(f"channel_attention {channel_attention!r} is unknown; choose none or efficient")

        def spatial(place: Place) -> nn.Module:
            if place.block in attention_blocks[place.stage]:
                return AttentionLayer(place, num_heads, key_dim, attention_dropout, activation)
            return convolution(place, group_width, channel_attention == "efficient", activation)

        super().__init__(
            spatial,
            image_size,
            patch_size,
            depths,
            widths,
            bottleneck=bottleneck,
            last_stride=last_stride,
            stem=stem,
            stem_width=stem_width,
            activation=activation,
            in_channels=in_channels,
            drop_path=drop_path,
        )
        self.arguments = arguments


class AttentionLayer(nn.Module):
    """Attention among all cells of a map, the mean of 2x2 cells where the stride is 2, batch norm and activation.

    (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)).

    Raises:
        ValueError: the heads don't divide the channels.
    """

    def __init__(self, place: Place, num_heads: int, key_dim: int | None, dropout: float, activation: str) -> None:
        super().__init__()
        dim = place.out_channels
        if dim % num_heads:
            raise ValueError(
                f"{num_heads} heads don't divide the {dim} channels within the blocks of stage {place.stage}"
            )
        self.attention = RelativePositionAttention(
            dim,
            num_heads,
            grid=place.grid,
            head_dim=key_dim,
            value_dim=dim // num_heads,
            qkv_bias=False,
            has_projection=False,
            dropout=dropout,
        )
        self.stride = place.stride
        self.norm = nn.BatchNorm2d(dim)
        self.activation = activation

    def forward(self, cells: Tensor) -> Tensor:
        grid = (cells.shape[2], cells.shape[3])
        attended = self.attention(cells.flatten(2).transpose(1, 2), grid)  # (B, height * width, C)
        cells = attended.transpose(1, 2).unflatten(2, grid)
        if self.stride > 1:
            cells = functional.avg_pool2d(cells, self.stride, ceil_mode=True)
        return activate(self.norm(cells), self.activation)


def convolution(place: Place, group_width: int | None, channel_attention: bool, activation: str) -> nn.Module:
    """A 3x3 convolution with batch norm and activation, and channel attention behind it if wanted.

    Raises:
        ValueError: the channels aren't groups of this width.
    """
    if group_width is not None and place.out_channels % group_width:
        raise ValueError(
            f"the {place.out_channels} channels within the blocks of stage {place.stage} are no groups of {group_width}"
        )
    groups = 1 if group_width is None else place.out_channels // group_width
    layer = ConvNorm(
        place.in_channels, place.out_channels, 3, stride=place.stride, activation=activation, groups=groups
    )
    return nn.Sequential(layer, EfficientChannelAttention(place.out_channels)) if channel_attention else layer


class EfficientChannelAttention(nn.Module):
    """Each channel times a number from 0 to 1, made of the means of the channels next to it: (B, C, H, W) to the same.

    How many channels make the number grows with the logarithm of C.

    Source: Wang et al. 2020 (ECA-Net, https://arxiv.org/abs/1910.03151), sections 3.2.2 and 3.2.3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = int(abs(math.log2(channels) + 1) / 2)
        size = max(size if size % 2 else size + 1, 3)
        self.convolution = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, cells: Tensor) -> Tensor:
        means = cells.mean((2, 3))  # (B, C)
        return cells * torch.sigmoid(self.convolution(means[:, None])).transpose(1, 2)[..., None]


def botnet_32(image_size: int | Sequence[int] = 32, patch_size: int | None = None, **overrides: Any) -> BoTNet:
    """Three stages of two blocks for 32 pixels, 1.5 M parameters; patches of 2 pixels, from 64 pixels on of 4.

    The second block of the second stage attends, and all of the last.
    """
    arguments: dict[str, Any] = {
        "depths": (2, 2, 2),
        "widths": (128, 256, 512),
        "attention_blocks": ((), (1,), (0, 1)),
        "bottleneck": 0.5,
        "last_stride": 2,
        "stem": "fine",
        "activation": "silu",
    } | overrides
    small = min(as_pair(image_size)) < 64
    return BoTNet(image_size, patch_size or (2 if small else 4), **arguments)


def botnet50(image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any) -> BoTNet:
    """BoTNet-S1-50, 18.8 M parameters, with its head of 1000 classes the published 20.8 M (digits cut off).

    The last stage attends, at the stride of the stage before; last_stride=2 makes it BoT50.

    Source: Srinivas et al. 2021, https://arxiv.org/abs/2101.11605, table 1, and what it says of BoTNet-S1.
    """
    return BoTNet(image_size, patch_size or 4, **overrides)
