"""Inverted bottlenecks with squeeze-and-excitation, and the stem and downsampling of the networks built from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.backbones.conv_norm import ConvNorm, activate
from visattn.backbones.layers import drop_path as drop_branch


@dataclass(frozen=True)
class MobileDesign:
    """What all inverted bottlenecks of a network have in common.

    Attributes:
        expansion: channels between the 1x1 convolutions / those that go in or come out, in multiples of 8.
        expand_from: "output" or "input": which channels `expansion` multiplies.
        convolution_activation: gelu, gelu_tanh, silu or relu.
        norm_activation: apply it behind the first norm, too.
        excitation_ratio: channels of the squeezed vector / those that `expand_from` names; from "input" / those between
            the 1x1 convolutions.
        excitation_activation: silu or relu.
        excitation_first: weigh the channels before the depthwise convolution's norm, not behind its activation.
        stride_by: what halves the map: "depthwise", the stride of the depthwise convolution; or "pooling", means of 2x2
            cells in front of the first convolution.
        pooling: of the shortcut: "average" of 2x2 cells, or "max" of 3x3 cells.
        output_bias: biases of the last 1x1 convolution and of the shortcut's.
        padding: "symmetric", or "same" as TensorFlow pads convolutions of stride 2.
        batch_norm_eps: epsilon of all batch norms.

    Raises:
        ValueError: a name is unknown.
    """

    expansion: float = 4.0
    expand_from: str = "output"
    convolution_activation: str = "gelu"
    norm_activation: bool = False
    excitation_ratio: float = 0.25
    excitation_activation: str = "silu"
    excitation_first: bool = False
    stride_by: str = "depthwise"
    pooling: str = "average"
    output_bias: bool = True
    padding: str = "symmetric"
    batch_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name, choices in (
            ("expand_from", ("output", "input")),
            ("stride_by", ("depthwise", "pooling")),
            ("pooling", ("average", "max")),
            ("padding", ("symmetric", "same")),
            ("excitation_activation", ("silu", "relu")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; choose {' or '.join(choices)}")


class MobileConvolution(nn.Module):
    """shortcut(x) + project(excite(depthwise(expand(norm(x))))): an inverted bottleneck (MBConv).

    (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)). Norm and activation follow the two
    inner convolutions.

    Args:
        in_channels, out_channels: of the maps; the same if stride is 1.
        design: what all of the network's bottlenecks share.
        stride: 1 or 2.
        drop_path: probability that a sample skips the branch in training.

    Source: Sandler et al. 2018 (https://arxiv.org/abs/1801.04381); with squeeze-and-excitation Tan & Le 2019
        (https://arxiv.org/abs/1905.11946); with the norm first Dai et al. 2021 (https://arxiv.org/abs/2106.04803),
        appendix A.1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, design: MobileDesign, *, stride: int = 1, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        from_output = design.expand_from == "output"
        hidden = multiple_of_8((out_channels if from_output else in_channels) * design.expansion)
        squeezed = int((out_channels if from_output else hidden) * design.excitation_ratio + 1e-6)
        strides = (1, stride) if design.stride_by == "depthwise" else (stride, 1)  # of pooling, of the convolution
        self.activation = design.convolution_activation
        norm: dict[str, Any] = {"activation": self.activation, "norm_eps": design.batch_norm_eps}
        self.shortcut = Downsample(in_channels, out_channels, stride, design.pooling, bias=design.output_bias)
        self.norm = nn.BatchNorm2d(in_channels, eps=design.batch_norm_eps)
        self.norm_activation = self.activation if design.norm_activation else "none"
        self.pooling_stride = strides[0]
        self.expand = ConvNorm(in_channels, hidden, **norm)
        self.depthwise = ConvNorm(hidden, hidden, 3, stride=strides[1], groups=hidden, padding=design.padding, **norm)
        self.excitation = SqueezeExcitation(hidden, max(squeezed, 1), design.excitation_activation)
        self.excitation_first = design.excitation_first
        self.project = nn.Conv2d(hidden, out_channels, 1, bias=design.output_bias)
        self.drop_path = drop_path

    def forward(self, features: Tensor) -> Tensor:
        hidden = activate(self.norm(features), self.norm_activation)
        hidden = self.expand(pool(hidden, self.pooling_stride, "average"))  # (B, hidden, H, W)
        if self.excitation_first:
            hidden = self.excitation(self.depthwise.convolved(hidden))
            hidden = activate(self.depthwise.norm(hidden), self.activation)
        else:
            hidden = self.excitation(self.depthwise(hidden))
        branch = self.project(hidden)  # (B, out_channels, ceil(H / stride), ceil(W / stride))
        if self.drop_path and self.training:
            branch = drop_branch(branch, self.drop_path)
        return self.shortcut(features) + branch


class SqueezeExcitation(nn.Module):
    """x * sigmoid(W2 activation(W1 mean(x))), the mean over all cells: (B, channels, H, W) to the same.

    Cost: 2 * channels * squeezed, and reading the map.

    Args:
        channels: of the map.
        squeezed: channels between the two linear layers.
        activation: between them, "silu" or "relu".

    Source: Hu et al. 2018, https://arxiv.org/abs/1709.01507, equations 2 to 4.
    """

    def __init__(self, channels: int, squeezed: int, activation: str = "silu") -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        means = features.mean(dim=(2, 3))  # (B, channels)
        weights = self.excite(activate(self.squeeze(means), self.activation)).sigmoid()
        return features * weights[:, :, None, None]


class Downsample(nn.Module):
    """Pooling, and a 1x1 convolution where the channels change; nothing where neither is asked for.

    (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        stride: 1 or 2.
        pooling: see `pool`.
        bias: of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, pooling: str, *, bias: bool) -> None:
        super().__init__()
        self.stride, self.pooling = stride, pooling
        self.projection = nn.Conv2d(in_channels, out_channels, 1, bias=bias) if in_channels != out_channels else None

    def forward(self, features: Tensor) -> Tensor:
        features = pool(features, self.stride, self.pooling)
        return features if self.projection is None else self.projection(features)


class ConvolutionalStem(nn.Module):
    """Two 3x3 convolutions, norm and activation between them: (B, C, H, W) -> (B, dims[1], ceil(H / s), ceil(W / s)).

    Args:
        in_channels: of the images.
        dims: channels of both convolutions.
        stride: s, pixels per cell along one axis: 1, 2 or 4.
        design: of the network's inverted bottlenecks, for activation, norm and padding.
        bias: of both convolutions.

    Source: Dai et al. 2021, https://arxiv.org/abs/2106.04803, table 3 (S0).
    """

    def __init__(self, in_channels: int, dims: Sequence[int], stride: int, design: MobileDesign, *, bias: bool) -> None:
        super().__init__()
        strides = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[stride]
        self.first = ConvNorm(
            in_channels,
            dims[0],
            3,
            stride=strides[0],
            activation=design.convolution_activation,
            bias=bias,
            padding=design.padding,
            norm_eps=design.batch_norm_eps,
        )
        self.second = nn.Conv2d(dims[0], dims[1], 3, strides[1], padding=1, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images))


def pool(features: Tensor, stride: int, kind: str) -> Tensor:
    """The average of 2x2 cells or the max of 3x3: (B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)); stride 1: nothing.

    At an odd border there are fewer cells, and the average is that of those.
    """
    if stride == 1:
        return features
    if kind == "max":
        return functional.max_pool2d(features, kernel_size=3, stride=2, padding=1)
    return functional.avg_pool2d(features, kernel_size=2, ceil_mode=True)


def multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8, the next higher one if that were more than a tenth too few."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def as_tokens(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C); in channels-last memory nothing moves."""
    return features.flatten(2).transpose(1, 2)


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, height * width, C) -> (B, C, height, width) in channels-last memory."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def channels_last(images: Tensor) -> Tensor:
    """The same (B, C, H, W) in channels-last memory, in which convolutions of the CPU and tokens need no copies."""
    return images.contiguous(memory_format=torch.channels_last)
