"""Attention-augmented residual networks: convolutions and attention heads side by side give the channels of a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention import RelativePositionAttention
from visattn.backbones.conv_norm import ConvNorm, activate
from visattn.backbones.features import as_pair, constructor_arguments
from visattn.backbones.residual import Place, ResidualNetwork


class AugmentedResNet(ResidualNetwork):
    """Images (B, in_channels, H, W) of any size to `Features` with one map per stage.

    The first 3x3 convolution of each block in the augmented stages gives up some of its channels to attention.

    Args:
        image_size, patch_size, depths, widths, bottleneck, stem, stem_width, activation, in_channels, drop_path: see
            `ResidualNetwork`.
        augmented_stages: whose blocks have attention, counted from 0.
        num_heads: attention heads.
        key_ratio: channels of all queries, and of all keys / those of the convolution (κ of the paper), rounded down
            for each head.
        value_ratio: channels that attention gives / those of the convolution (υ of the paper), likewise; with 1 there
            is no convolution left.
        min_key_dim: the least channels of a head's queries and keys.
        attention_dropout: probability that an attention weight is dropped in training.

    Raises:
        ValueError: augmented_stages name a stage that doesn't exist, a head would have no values, or another argument
            is none of what is allowed.

    Source: Bello et al. 2019, https://arxiv.org/abs/1904.09925, sections 3.2 and 4.2.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (256, 512, 1024, 2048),
        *,
        augmented_stages: Sequence[int] = (1, 2, 3),
        num_heads: int = 8,
        key_ratio: float = 0.2,
        value_ratio: float = 0.1,
        min_key_dim: int = 20,
        bottleneck: float | None = 0.25,
        stem: str = "single",
        stem_width: int = 64,
        activation: str = "relu",
        in_channels: int = 3,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        arguments = constructor_arguments(locals())
        if not set(augmented_stages) <= set(range(len(depths))):
            raise ValueError(f"augmented_stages {tuple(augmented_stages)} must be among 0 to {len(depths) - 1}")

        def spatial(place: Place) -> nn.Module:
            channels = place.out_channels
            if place.stage not in augmented_stages:
                return ConvNorm(place.in_channels, channels, 3, stride=place.stride, activation=activation)
            return AugmentedConvolution(
                place,
                num_heads,
                key_dim=max(int(key_ratio * channels / num_heads), min_key_dim),
                value_dim=int(value_ratio * channels / num_heads),
                dropout=attention_dropout,
                activation=activation,
            )

        super().__init__(
            spatial,
            image_size,
            patch_size,
            depths,
            widths,
            bottleneck=bottleneck,
            last_stride=2,
            stem=stem,
            stem_width=stem_width,
            activation=activation,
            in_channels=in_channels,
            drop_path=drop_path,
        )
        self.arguments = arguments


class AugmentedConvolution(nn.Module):
    """The channels of a 3x3 convolution and of attention among all cells behind each other, batch norm and activation.

    Where the stride is 2, attention is among the means of 3x3 cells, by which the paper saves memory.

    (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        place: says the channels, the stride and the map.
        num_heads: attention heads.
        key_dim, value_dim: channels of a head's queries and keys, and of its values.
        dropout: of attention weights.
        activation: "relu" or "silu".

    Raises:
        ValueError: the heads give no channels, or more than there are.

    Source: Bello et al. 2019, https://arxiv.org/abs/1904.09925, section 3.2.
    """

    def __init__(
        self, place: Place, num_heads: int, *, key_dim: int, value_dim: int, dropout: float, activation: str
    ) -> None:
        super().__init__()
        attended = num_heads * value_dim
        convolved = place.out_channels - attended
        if attended < 1 or convolved < 0:
            raise ValueError(
                f"{num_heads} heads of {value_dim} values can't give a part of {place.out_channels} channels; "
                "choose another value_ratio, or fewer heads"
            )
        grid = (-(-place.grid[0] // place.stride), -(-place.grid[1] // place.stride))
        self.stride = place.stride
        self.convolution = (
            nn.Conv2d(place.in_channels, convolved, 3, place.stride, padding=1, bias=False) if convolved else None
        )
        self.attention = RelativePositionAttention(
            place.in_channels,
            num_heads,
            grid=grid,
            head_dim=key_dim,
            value_dim=value_dim,
            out_dim=attended,
            qkv_bias=False,
            projection_bias=False,
            dropout=dropout,
        )
        self.norm = nn.BatchNorm2d(place.out_channels)
        self.activation = activation

    def forward(self, cells: Tensor) -> Tensor:
        read = cells
        if self.stride > 1:
            read = functional.avg_pool2d(cells, 3, self.stride, padding=1, count_include_pad=False)
        grid = (read.shape[2], read.shape[3])
        attended = self.attention(read.flatten(2).transpose(1, 2), grid)  # (B, height * width, heads * value_dim)
        parts = [attended.transpose(1, 2).unflatten(2, grid)]
        if self.convolution is not None:
            parts.insert(0, self.convolution(cells))
        return activate(self.norm(torch.cat(parts, dim=1)), self.activation)


def augmented_resnet_32(
    image_size: int | Sequence[int] = 32, patch_size: int | None = None, **overrides: Any
) -> AugmentedResNet:
    """Three stages of two blocks for 32 pixels, 2.7 M parameters; patches of 2 pixels, from 64 pixels on of 4.

    From the second stage on, four heads give a quarter of the channels of each block's first convolution.

    Source: blocks of two 3x3 convolutions, of which the first is augmented, as in Bello et al. 2019, section 4.1.
    """
    arguments: dict[str, Any] = {
        "depths": (2, 2, 2),
        "widths": (64, 128, 256),
        "augmented_stages": (1, 2),
        "num_heads": 4,
        "key_ratio": 0.25,
        "value_ratio": 0.25,
        "bottleneck": None,
        "stem": "fine",
        "activation": "silu",
    } | overrides
    small = min(as_pair(image_size)) < 64
    return AugmentedResNet(image_size, patch_size or (2 if small else 4), **arguments)


def augmented_resnet50(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> AugmentedResNet:
    """AA-ResNet-50, 23.8 M parameters, with its head of 1000 classes the published 25.8 M.

    Source: Bello et al. 2019, https://arxiv.org/abs/1904.09925, section 4.2. Its heads, ratios and their minimum are
        those of section 4.1, which give the published numbers of parameters of all its ResNets.
    """
    return AugmentedResNet(image_size, patch_size or 4, **overrides)
