"""ResNet-D, the residual network of RT-DETR: a deep stem, and shortcuts that average before they project."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.backbones.conv_norm import ConvNorm, activate
from visattn.backbones.features import Backbone, Features, as_pair, constructor_arguments


class ResNetD(Backbone):
    """Images (B, in_channels, H, W) of any size to `Features`.

    It differs from timm's `resnet18d` and `resnet34d` in the first shortcut, which is projected, as in the networks
    that RT-DETR publishes.

    Args:
        image_size: height and width in pixels, or one number, of the images it is trained on.
        depths: blocks in each of the four stages.
        widths: channels of each stage's map.
        bottleneck: blocks of three convolutions whose inner ones have a quarter of the channels, in place of two.
        stem_width: channels behind the stem.
        out_stages: which stages' maps are given, counted from 0, finest first.
        frozen_norms: batch norms keep their statistics and factors in training.
        in_channels: of the images.

    Raises:
        ValueError: there are not as many depths as widths, or out_stages don't rise to the last stage.

    Source: He et al. 2019 (Bag of Tricks, https://arxiv.org/abs/1812.01187), section 4.2.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 640,
        depths: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        bottleneck: bool = False,
        stem_width: int = 64,
        out_stages: Sequence[int] = (1, 2, 3),
        frozen_norms: bool = False,
        in_channels: int = 3,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__()
        self.arguments = arguments
        if len(depths) != len(widths):
            raise ValueError(f"{len(depths)} depths don't fit {len(widths)} widths: a stage has one of each")
        self.out_stages = tuple(out_stages)
        rising = sorted(set(self.out_stages)) == list(self.out_stages)
        if not rising or self.out_stages[-1:] != (len(depths) - 1,):
            raise ValueError(f"out_stages {self.out_stages} must rise to {len(depths) - 1}, the last of the stages")
        self.image_size = as_pair(image_size)
        self.channels = tuple(widths[stage] for stage in self.out_stages)
        self.strides = tuple(4 * 2**stage for stage in self.out_stages)
        self.num_features = widths[-1]
        self.num_prefix_tokens = 0
        self.depths = tuple(depths)
        self.num_layers = sum(depths) + 1

        half = stem_width // 2
        self.stem = nn.Sequential(
            ConvNorm(in_channels, half, 3, stride=2, activation="relu", frozen=frozen_norms),
            ConvNorm(half, half, 3, activation="relu", frozen=frozen_norms),
            ConvNorm(half, stem_width, 3, activation="relu", frozen=frozen_norms),
        )
        block = BottleneckBlock if bottleneck else BasicBlock
        self.stages = nn.ModuleList()
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            before = widths[stage - 1] if stage else stem_width
            self.stages.append(
                nn.Sequential(
                    block(before, width, stride=2 if stage else 1, project=True, frozen=frozen_norms),
                    *(block(width, width, frozen=frozen_norms) for _ in range(depth - 1)),
                )
            )
        self.initialize()

    def initialize(self) -> None:
        """Draws new kernels, normal with He's deviation over the fan-out."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Features:
        """Images (B, in_channels, H, W) to `Features`."""
        if not torch.is_grad_enabled():
            # Convolutions of the CPU and of tensor cores read pixel by pixel; the maps stay so through all of them.
            images = images.contiguous(memory_format=torch.channels_last)
        features = functional.max_pool2d(self.stem(images), kernel_size=3, stride=2, padding=1)
        maps = []
        for stage in self.stages:
            features = stage(features)  # (B, C_i, height, width)
            maps.append(features)
        tokens = features.flatten(2).transpose(1, 2)  # (B, height * width, C)
        return Features(tuple(maps[stage] for stage in self.out_stages), tokens, tokens.mean(dim=1))

    def layer_of(self, parameter_name: str) -> int:
        """0 for the stem, i for the i-th block (from 1) of all stages."""
        if not parameter_name.startswith("stages."):
            return 0
        _, stage, block, *_ = parameter_name.split(".")
        return sum(self.depths[: int(stage)]) + int(block) + 1


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, project: bool = False, frozen: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride=stride, activation="relu", frozen=frozen)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, frozen=frozen)
        self.shortcut = Shortcut(in_channels, out_channels, stride, frozen) if project else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return activate(self.conv2(self.conv1(features)) + self.shortcut(features), "relu")


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, the inner ones with a quarter of the channels."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, project: bool = False, frozen: bool = False
    ) -> None:
        super().__init__()
        inner = out_channels // 4
        self.conv1 = ConvNorm(in_channels, inner, activation="relu", frozen=frozen)
        self.conv2 = ConvNorm(inner, inner, 3, stride=stride, activation="relu", frozen=frozen)
        self.conv3 = ConvNorm(inner, out_channels, frozen=frozen)
        self.shortcut = Shortcut(in_channels, out_channels, stride, frozen) if project else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return activate(self.conv3(self.conv2(self.conv1(features))) + self.shortcut(features), "relu")


class Shortcut(nn.Module):
    """The mean of 2x2 cells where the stride is 2, and a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, frozen: bool) -> None:
        super().__init__()
        self.stride = stride
        self.projection = ConvNorm(in_channels, out_channels, frozen=frozen)

    def forward(self, features: Tensor) -> Tensor:
        if self.stride > 1:
            features = functional.avg_pool2d(features, self.stride, ceil_mode=True)
        return self.projection(features)
