"""Convolutions for what is near, neighborhood attention for what matters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from visattn.attention import MultiHeadAttention, NeighborhoodAttention
from visattn.backbones.features import Backbone, Features, as_pair, constructor_arguments
from visattn.backbones.layers import drop_path, drop_path_rates, initialize


class LocalHybrid(Backbone):
    """Images (B, channels, H, W) to `Features` with one map per stage.

    A block is two 3x3 convolutions and then neighborhood attention, each on a residual branch. Convolutions reduce the
    image to the first stage, and one of stride 2 leads to each further stage. There are no position embeddings: any
    image size works as it is.

    Args:
        image_size: height and width in pixels, or one number; only for reference.
        patch_size: pixels per token of the first stage along one axis, a power of two from 2.
        dims: channels of each stage.
        depths: number of blocks of each stage.
        num_heads: attention heads of each stage.
        attention: "local" or "global" for each block, repeated over the depth of the whole network.
        kernel_size: side in tokens of the neighborhood, of all stages or one for each.
        stem_dim: channels at the full resolution of the image.
        in_channels: of the images.
        attention_dropout: probability that an attention weight is dropped in training.
        drop_path: probability that a sample skips a branch of the last block in training; rises linearly from 0.

    Raises:
        ValueError: dims, depths and num_heads differ in length, or patch_size is no power of two.

    Source: neighborhood attention and convolutional stages of NAT (Hassani et al. 2023,
        https://arxiv.org/abs/2204.07143); residual convolutions as in He et al. 2016 (identity mappings,
        https://arxiv.org/abs/1603.05027).
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 32,
        patch_size: int = 2,
        dims: Sequence[int] = (64, 256),
        depths: Sequence[int] = (1, 2),
        num_heads: Sequence[int] = (2, 8),
        *,
        attention: Sequence[str] = ("local",),
        kernel_size: int | Sequence[int] = 5,
        stem_dim: int = 64,
        in_channels: int = 3,
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

        self.stem = nn.Sequential(*convolutions_to_stride(in_channels, stem_dim, dims[0], patch_size))
        self.downsamples = nn.ModuleList(
            convolution(narrow, wide, stride=2) for narrow, wide in itertools.pairwise(dims)
        )
        rates = drop_path_rates(drop_path, sum(depths))
        self.stages = nn.ModuleList()
        for stage, (dim, depth, heads) in enumerate(zip(dims, depths, num_heads, strict=True)):
            kinds: dict[str, partial] = {
                "global": partial(MultiHeadAttention, dim, heads, dropout=attention_dropout),
                "local": partial(
                    NeighborhoodAttention, dim, heads, kernel_size=kernels[stage], dropout=attention_dropout
                ),
            }
            start = sum(depths[:stage])
            self.stages.append(
                nn.ModuleList(
                    HybridBlock(dim, kinds[attention[index % len(attention)]], rates[index])
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
            for block in stage.children():
                cells = block(cells)
            maps.append(cells)
        tokens = self.norm(cells.flatten(2).transpose(1, 2))  # (B, height * width, C)
        maps[-1] = tokens.transpose(1, 2).unflatten(2, cells.shape[-2:])
        return Features(tuple(maps), tokens, tokens.mean(dim=1))

    def layer_of(self, parameter_name: str) -> int:
        """0 for the stem, i for the i-th block (from 1) over all stages; a downsampling goes with the next block."""
        part, *rest = parameter_name.split(".")
        if part == "stages":
            return sum(self.depths[: int(rest[0])]) + int(rest[1]) + 1
        if part == "downsamples":
            return sum(self.depths[: int(rest[0]) + 1]) + 1
        return self.num_layers - 1 if part == "norm" else 0


class HybridBlock(nn.Module):
    """Two 3x3 convolutions, then attention, each added to what it is made of: (B, dim, height, width) as in and out.

    The convolutions' zero padding tells the attention where the borders are.

    Args:
        dim: channels.
        make_attention: builds an attention module, called as `module(tokens, grid)`.
        drop_path: probability that a sample skips a residual branch in training.
    """

    def __init__(self, dim: int, make_attention: partial, drop_path: float) -> None:
        super().__init__()
        self.convolution1 = convolution(dim, dim, stride=1)
        self.convolution2 = convolution(dim, dim, stride=1)
        # The branch begins as nothing and is learned (Goyal et al. 2017, https://arxiv.org/abs/1706.02677, 5.1).
        nn.init.zeros_(self.convolution2[1].get_parameter("weight"))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = make_attention()
        self.drop_path = drop_path

    def forward(self, cells: Tensor) -> Tensor:
        branch = functional.relu(self.convolution1(functional.relu(cells)), inplace=True)
        cells = cells + self.drop(self.convolution2(branch))
        grid = (cells.shape[-2], cells.shape[-1])
        tokens = cells.flatten(2).transpose(1, 2)  # (B, height * width, dim)
        attended = self.attention(self.norm(tokens), grid)
        return cells + self.drop(attended).transpose(1, 2).unflatten(2, grid)

    def drop(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop_path) if self.drop_path and self.training else branch


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


def local_hybrid_tiny(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> LocalHybrid:
    """Two stages of 64 and 256 channels, 3.2 M parameters; patches of 2 pixels, from 64 pixels on of 4."""
    return LocalHybrid(image_size, patch_size or hybrid_patch_size(image_size), **overrides)


def local_hybrid_small(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> LocalHybrid:
    """Three stages of 128, 256 and 384 channels and seven blocks, kernels of 7; 17.5 M parameters."""
    arguments: dict[str, Any] = {
        "dims": (128, 256, 384),
        "depths": (1, 2, 4),
        "num_heads": (4, 8, 12),
        "kernel_size": 7,
    } | overrides
    return LocalHybrid(image_size, patch_size or hybrid_patch_size(image_size), **arguments)


def hybrid_patch_size(image_size: int | Sequence[int]) -> int:
    """Pixels per token of the first stage by which a preset serves small and large images."""
    return 4 if min(as_pair(image_size)) >= 64 else 2
