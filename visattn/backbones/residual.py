"""What residual networks with attention have in common: stem, blocks beside shortcuts, and the maps of their stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from visattn.backbones.conv_norm import ConvNorm, activate
from visattn.backbones.features import Backbone, Features, as_pair
from visattn.backbones.layers import drop_path, drop_path_rates


class Place(NamedTuple):
    """Where a block's spatial layer stands, the one that mixes the cells of a map.

    Attributes:
        stage, block: the stage, and the block within it, counted from 0.
        in_channels, out_channels: of the layer.
        stride: of the layer.
        grid: (height, width) of the map that it reads, of images of the network's size.
    """

    stage: int
    block: int
    in_channels: int
    out_channels: int
    stride: int
    grid: tuple[int, int]


class ResidualNetwork(Backbone):
    """The base of residual networks whose kinds say what mixes the cells of a map in each block.

    Of stages with the same stride, the last one gives the map. Maps are kept pixel by pixel (channels last). Where no
    gradients are recorded, batch norms are part of the convolutions.

    Args:
        make_spatial: makes the layer of a place, with its activation: (B, in_channels, H, W) to (B, out_channels,
            ceil(H / stride), ceil(W / stride)).
        image_size: height and width in pixels, or one number, of the images that tables of positions are made for.
        patch_size: stride of the first map in pixels, a power of two from 2.
        depths: blocks of each stage.
        widths: channels of each stage's map.
        bottleneck: channels within a block / those of its map; the spatial layer stands between two 1x1 convolutions.
            None makes blocks of the spatial layer and a 3x3 convolution.
        last_stride: of the last stage, 2 as the stages before, or 1.
        stem: "single", a 7x7 convolution of stride 2; "tiered", three 3x3 convolutions of which the first has stride 2;
            or "fine", two 3x3 convolutions. Max pooling follows until the stride is patch_size.
        stem_width: channels behind the stem.
        activation: "relu" or "silu".
        in_channels: of the images.
        drop_path: probability that a sample skips the last block in training; rises linearly from 0.

    Raises:
        ValueError: depths and widths differ in number, or another argument is none of what is allowed.
    """

    def __init__(
        self,
        make_spatial: Callable[[Place], nn.Module],
        image_size: int | Sequence[int],
        patch_size: int,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        bottleneck: float | None,
        last_stride: int,
        stem: str,
        stem_width: int,
        activation: str,
        in_channels: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        if not depths or len(depths) != len(widths):
            raise ValueError(f"{len(depths)} depths don't fit {len(widths)} widths: a stage has one of each")
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride {last_stride} must be 1 or 2")
        steps = [1] + [2] * (len(depths) - 2) + [last_stride] * (len(depths) > 1)
        strides = [patch_size * 2 ** steps[: stage + 1].count(2) for stage in range(len(depths))]
        self.image_size = as_pair(image_size)
        self.map_stages = tuple(stage for stage, stride in enumerate(strides) if stride not in strides[stage + 1 :])
        self.channels = tuple(widths[stage] for stage in self.map_stages)
        self.strides = tuple(strides[stage] for stage in self.map_stages)
        self.depths = tuple(depths)
        self.num_features = widths[-1]
        self.num_prefix_tokens = 0
        self.num_layers = sum(depths) + 1

        self.stem = make_stem(stem, in_channels, stem_width, patch_size, activation)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        before, read_stride = stem_width, patch_size
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = nn.Sequential()
            for block in range(depth):
                stride = steps[stage] if block == 0 else 1
                inner = width if bottleneck is None else round(width * bottleneck)
                grid = (-(-self.image_size[0] // read_stride), -(-self.image_size[1] // read_stride))
                place = Place(stage, block, before if bottleneck is None else inner, inner, stride, grid)
                blocks.append(ResidualBlock(place, make_spatial, before, width, bottleneck, activation, next(rates)))
                before, read_stride = width, read_stride * stride
            self.stages.append(blocks)
        self.initialize()

    def initialize(self) -> None:
        """Draws new kernels, normal with He's deviation over the fan-out."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Features:
        """Images (B, in_channels, H, W) of any size to `Features`."""
        # Convolutions of the CPU and of tensor cores read pixel by pixel, and so does attention.
        cells = self.stem(images.contiguous(memory_format=torch.channels_last))  # (B, stem_width, height, width)
        maps = []
        for index, stage in enumerate(self.stages):
            cells = stage(cells)  # (B, C_i, height, width)
            if index in self.map_stages:
                maps.append(cells)
        tokens = cells.flatten(2).transpose(1, 2)  # (B, height * width, C)
        return Features(tuple(maps), tokens, tokens.mean(dim=1))

    def layer_of(self, parameter_name: str) -> int:
        """0 for the stem, i for the i-th block (from 1) of all stages."""
        if not parameter_name.startswith("stages."):
            return 0
        _, stage, block, *_ = parameter_name.split(".")
        return sum(self.depths[: int(stage)]) + int(block) + 1


class ResidualBlock(nn.Module):
    """A spatial layer with what stands before and behind it, beside a shortcut, which is projected where it must be.

    (B, before, H, W) -> (B, width, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        place: Place,
        make_spatial: Callable[[Place], nn.Module],
        before: int,
        width: int,
        bottleneck: float | None,
        activation: str,
        drop_path: float,
    ) -> None:
        super().__init__()
        narrow = bottleneck is not None
        self.reduce = ConvNorm(before, place.in_channels, activation=activation) if narrow else nn.Identity()
        self.spatial = make_spatial(place)
        self.expand = ConvNorm(place.out_channels, width, 1 if narrow else 3)
        same = before == width and place.stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(before, width, stride=place.stride)
        self.activation, self.drop_path = activation, drop_path

    def forward(self, cells: Tensor) -> Tensor:
        branch = self.expand(self.spatial(self.reduce(cells)))
        if self.drop_path and self.training:
            branch = drop_path(branch, self.drop_path)
        return activate(branch + self.shortcut(cells), self.activation)


def make_stem(kind: str, in_channels: int, width: int, patch_size: int, activation: str) -> nn.Sequential:
    """(B, in_channels, H, W) -> (B, width, ceil(H / patch_size), ceil(W / patch_size)).

    Raises:
        ValueError: the kind is unknown, or patch_size is no power of two from 2.
    """
    if patch_size < 2 or patch_size & (patch_size - 1):
        raise ValueError(f"patch_size {patch_size} doesn't fit a convolutional stem; choose a power of two from 2")
    halvings = patch_size.bit_length() - 1
    if kind == "single":
        layers: list[nn.Module] = [ConvNorm(in_channels, width, 7, stride=2, activation=activation)]
    elif kind == "tiered":
        first, second = 3 * width // 8, width // 2
        layers = [
            ConvNorm(in_channels, first, 3, stride=2, activation=activation),
            ConvNorm(first, second, 3, activation=activation),
            ConvNorm(second, width, 3, activation=activation),
        ]
    elif kind == "fine":
        layers = [
            ConvNorm(in_channels, width // 2, 3, activation=activation),
            ConvNorm(width // 2, width, 3, activation=activation),
        ]
    else:
        raise ValueError(f"stem {kind!r} is unknown; choose single, tiered or fine")
    pools = halvings if kind == "fine" else halvings - 1
    return nn.Sequential(*layers, *(nn.MaxPool2d(3, stride=2, padding=1) for _ in range(pools)))
