"""Convolutions for what is near, neighborhood attention for what matters: learns well from small data sets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from visattn.attention import MultiHeadAttention, NeighborhoodAttention
from visattn.backbones.blocks import BlockDesign, TransformerBlock
from visattn.backbones.features import Backbone, Features, as_pair, constructor_arguments
from visattn.backbones.layers import drop_path_rates, initialize


class LocalHybrid(Backbone):
    """Images (B, channels, H, W) to `Features` with one map per stage.

    Convolutions reduce the image to the first stage, where residual ones find edges and textures, and a convolution of
    stride 2 leads to each further stage. A block adds position by a depthwise convolution, then attends within a
    neighborhood, then applies an MLP. There are no position embeddings: any image size works as it is.

    Args:
        image_size: height and width in pixels, or one number; only for reference.
        patch_size: pixels per token of the first stage along one axis, a power of two from 2.
        dims: channels of each stage.
        depths: number of blocks of each stage.
        num_heads: attention heads of each stage.
        attention: "local" or "global" for each block, repeated over the depth of the whole network.
        kernel_size: side in tokens of the neighborhood, of all stages or one for each.
        mlp_ratio: hidden channels of the MLP / channels.
        stem_dim: channels at the full resolution of the image.
        stem_depth: residual pairs of 3x3 convolutions before the first block.
        in_channels: of the images.
        activation: of MLPs: gelu, gelu_tanh, quick_gelu, silu or relu (on CPUs half the time of the others).
        dropout, attention_dropout: probabilities within MLP and attention, in training.
        drop_path: probability that a sample skips a branch of the last block in training; rises linearly from 0.

    Raises:
        ValueError: dims, depths and num_heads differ in length, or patch_size is no power of two.

    Source: neighborhood attention and convolutional stages of NAT (Hassani et al. 2023,
        https://arxiv.org/abs/2204.07143); conditional positions of CPVT (Chu et al. 2023,
        https://arxiv.org/abs/2102.10882).
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 32,
        patch_size: int = 2,
        dims: Sequence[int] = (64, 192),
        depths: Sequence[int] = (1, 5),
        num_heads: Sequence[int] = (2, 6),
        *,
        attention: Sequence[str] = ("local",),
        kernel_size: int | Sequence[int] = 5,
        mlp_ratio: float = 3.0,
        stem_dim: int = 64,
        stem_depth: int = 1,
        in_channels: int = 3,
        activation: str = "relu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__()
        self.arguments = arguments
        kernels = (kernel_size,) * len(dims) if isinstance(kernel_size, int) else tuple(kernel_size)
        if not len(dims) == len(depths) == len(num_heads) == len(kernels):
            raise ValueError(f"dims {dims}, depths {depths}, num_heads {num_heads}, kernel_size {kernel_size} disagree")
        if patch_size < 2 or patch_size & (patch_size - 1):
            raise ValueError(f"patch_size {patch_size} doesn't fit a convolutional stem; choose a power of two from 2")
        unknown = set(attention) - {"global", "local"}
        if unknown or not attention:
            raise ValueError(f"attention {attention} is no pattern of 'global' and 'local'")
        self.image_size = as_pair(image_size)
        self.channels = tuple(dims)
        self.strides = tuple(patch_size * 2**stage for stage in range(len(dims)))
        self.depths = tuple(depths)
        self.num_features = dims[-1]
        self.num_prefix_tokens = 0
        self.num_layers = sum(depths) + 1

        self.stem = nn.Sequential(
            *convolutions_to_stride(in_channels, stem_dim, dims[0], patch_size),
            *(ResidualConvolution(dims[0]) for _ in range(stem_depth)),
        )
        self.downsamples = nn.ModuleList(
            convolution(narrow, wide, stride=2) for narrow, wide in itertools.pairwise(dims)
        )
        rates = drop_path_rates(drop_path, sum(depths))
        self.stages = nn.ModuleList()
        for stage, (dim, depth, heads) in enumerate(zip(dims, depths, num_heads, strict=True)):
            design = BlockDesign(dim, mlp_ratio, activation=activation, dropout=dropout)
            kinds: dict[str, partial] = {
                "global": partial(MultiHeadAttention, dim, heads, dropout=attention_dropout),
                "local": partial(
                    NeighborhoodAttention, dim, heads, kernel_size=kernels[stage], dropout=attention_dropout
                ),
            }
            start = sum(depths[:stage])
            self.stages.append(
                nn.ModuleList(
                    HybridBlock(design, kinds[attention[index % len(attention)]], rates[index])
                    for index in range(start, start + depth)
                )
            )
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.apply(initialize)

    def forward(self, images: Tensor) -> Features:
        """Images (B, channels, H, W) of any size to `Features`; the last map is normalised as `tokens` are."""
        cells = self.stem(images)  # (B, C_1, height, width)
        maps = []
        for index, stage in enumerate(self.stages):
            if index:
                cells = self.downsamples[index - 1](cells)
            grid = (cells.shape[-2], cells.shape[-1])
            tokens = cells.flatten(2).transpose(1, 2)  # (B, height * width, C_i)
            for block in stage.children():
                tokens = block(tokens, grid)
            cells = tokens.transpose(1, 2).unflatten(2, grid)  # (B, C_i, height, width), channels-last in memory
            maps.append(cells)
        tokens = self.norm(tokens)
        maps[-1] = tokens.transpose(1, 2).unflatten(2, grid)
        return Features(tuple(maps), tokens, tokens.mean(dim=1))

    def layer_of(self, parameter_name: str) -> int:
        """0 for the stem, i for the i-th block (from 1) over all stages; a downsampling goes with the next block."""
        part, *rest = parameter_name.split(".")
        if part == "stages":
            return sum(self.depths[: int(rest[0])]) + int(rest[1]) + 1
        if part == "downsamples":
            return sum(self.depths[: int(rest[0]) + 1]) + 1
        return self.num_layers - 1 if part == "norm" else 0


class HybridBlock(TransformerBlock):
    """A transformer block that first adds a depthwise 3x3 convolution, from which tokens know where they are."""

    def __init__(self, design: BlockDesign, make_attention: partial, drop_path: float) -> None:
        super().__init__(design, make_attention, drop_path)
        self.position = nn.Conv2d(design.dim, design.dim, kernel_size=3, padding=1, groups=design.dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        cells = tokens.transpose(1, 2).unflatten(2, grid)  # (B, dim, height, width)
        tokens = tokens + self.position(cells).flatten(2).transpose(1, 2)
        return super().forward(tokens, grid)


def convolution(narrow: int, wide: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution with batch norm: (B, narrow, H, W) -> (B, wide, ceil(H / stride), ceil(W / stride))."""
    kernel = nn.Conv2d(narrow, wide, kernel_size=3, stride=stride, padding=1, bias=False)
    return nn.Sequential(kernel, nn.BatchNorm2d(wide))


def convolutions_to_stride(in_channels: int, stem_dim: int, dim: int, stride: int) -> list[nn.Module]:
    """3x3 convolutions, the first at full resolution: (B, in_channels, H, W) -> (B, dim, H / stride, W / stride)."""
    layers = [convolution(in_channels, stem_dim, stride=1), nn.ReLU(inplace=True)]
    for _ in range(stride.bit_length() - 2):
        layers += [convolution(stem_dim, stem_dim, stride=2), nn.ReLU(inplace=True)]
    return [*layers, convolution(stem_dim, dim, stride=2)]


class ResidualConvolution(nn.Module):
    """cells + two 3x3 convolutions of them, (B, dim, height, width) as in and out.

    Source: He et al. 2016, https://arxiv.org/abs/1512.03385.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution1 = convolution(dim, dim, stride=1)
        self.convolution2 = convolution(dim, dim, stride=1)

    def forward(self, cells: Tensor) -> Tensor:
        return cells + self.convolution2(functional.relu(self.convolution1(functional.relu(cells)), inplace=True))


def local_hybrid_tiny(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> LocalHybrid:
    """Two stages of 64 and 192 channels, 2.1 M parameters; patches of 2 pixels, from 64 pixels on of 4."""
    return LocalHybrid(image_size, patch_size or hybrid_patch_size(image_size), **overrides)


def local_hybrid_small(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> LocalHybrid:
    """Three stages of 96, 192 and 384 channels, 11.6 M parameters."""
    arguments: dict[str, Any] = {
        "dims": (96, 192, 384),
        "depths": (1, 4, 6),
        "num_heads": (3, 6, 12),
        "kernel_size": 7,
    } | overrides
    return LocalHybrid(image_size, patch_size or hybrid_patch_size(image_size), **arguments)


def hybrid_patch_size(image_size: int | Sequence[int]) -> int:
    """Pixels per token of the first stage by which a preset serves small and large images."""
    return 4 if min(as_pair(image_size)) >= 64 else 2
