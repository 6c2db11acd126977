"""Convolutions for what is near, neighborhood attention for what matters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.backbones.attention_kinds import check_pattern, choose_attention
from visattn.backbones.features import Backbone, Features, as_pair, constructor_arguments, stage_patch_size
from visattn.backbones.layers import drop_path, drop_path_rates, initialize


class LocalHybrid(Backbone):
    """Images (B, channels, H, W) to `Features` with one map per stage.

    A stage begins with a 3x3 convolution and max pooling, which halve the map; its blocks are a residual branch of 3x3
    convolutions and neighborhood attention. There are no position embeddings: any image size works as it is.

    Args:
        image_size: height and width in pixels, or one number; only for reference.
        patch_size: pixels per token of the first stage along one axis, a power of two from 2.
        dims: channels of each stage.
        depths: number of blocks of each stage.
        num_heads: attention heads of each stage.
        convolutions: 3x3 convolutions of each block, from 1.
        attention: the kind of each block, repeated over the depth of the whole network, see `VisionTransformer`.
        attention_options: keywords of kinds by their name: {"window": {"window_size": 4}}.
        kernel_size: side in tokens of the neighborhood, of all stages or one for each.
        stem: "convolutions"; or "whitening", fixed filters of small patches of the training images, see
            `WhitenedPatches`, with which networks learn in about half the epochs.
        stem_dim: channels at the full resolution of the image; whitening has a number of its own.
        in_channels: of the images.
        attention_dropout: probability that an attention weight is dropped in training.
        drop_path: probability that a sample skips a branch of the last block in training; rises linearly from 0.

    Raises:
        ValueError: dims, depths and num_heads differ in length, patch_size is no power of two, or stem is unknown.

    Source: neighborhood attention and convolutional stages of NAT (Hassani et al. 2023,
        https://arxiv.org/abs/2204.07143); convolution, max pooling, batch norm and GELU in this order, and kernels that
        begin as the identity, as in Jordan 2024 (https://arxiv.org/abs/2404.00498); residual branches as in He et al.
        2016 (https://arxiv.org/abs/1512.03385).
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 32,
        patch_size: int = 2,
        dims: Sequence[int] = (64, 256, 256),
        depths: Sequence[int] = (1, 1, 1),
        num_heads: Sequence[int] = (2, 8, 8),
        *,
        convolutions: int = 2,
        attention: Sequence[str] = ("local",),
        attention_options: Mapping[str, Mapping[str, Any]] | None = None,
        kernel_size: int | Sequence[int] = 5,
        stem: str = "convolutions",
        stem_dim: int = 32,
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
        if stem not in ("convolutions", "whitening"):
            raise ValueError(f"stem {stem!r} is unknown; choose convolutions or whitening")
        check_pattern(attention, attention_options)
        self.image_size = as_pair(image_size)
        self.channels = tuple(dims)
        self.strides = tuple(patch_size * 2**stage for stage in range(len(dims)))
        self.depths = tuple(depths)
        self.num_features = dims[-1]
        self.num_prefix_tokens = 0
        self.num_layers = sum(depths) + 1

        self.stem: nn.Module
        if stem == "whitening":
            self.stem = WhitenedPatches(in_channels, patch_size, patch_size // 2)
            stem_dim = self.stem.out_channels
            self.adaptation_images = 5000
        else:
            self.stem = convolutions_to_stride(in_channels, stem_dim, patch_size // 2)
        self.downsamples = nn.ModuleList(
            halving(narrow, wide) for narrow, wide in itertools.pairwise((stem_dim, *dims))
        )
        rates = drop_path_rates(drop_path, sum(depths))
        self.stages = nn.ModuleList()
        for stage, (dim, heads) in enumerate(zip(dims, num_heads, strict=True)):
            grid = (-(-self.image_size[0] // self.strides[stage]), -(-self.image_size[1] // self.strides[stage]))
            blocks = nn.ModuleList()
            for index in range(sum(depths[:stage]), sum(depths[: stage + 1])):
                kind = attention[index % len(attention)]
                options: dict[str, Any] = {"dropout": attention_dropout, "kernel_size": kernels[stage]}
                make_attention = choose_attention(kind, dim, heads, grid, attention_options, **options)
                blocks.append(HybridBlock(dim, convolutions, make_attention, rates[index]))
            self.stages.append(blocks)
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.apply(initialize)
        for downsample in self.downsamples:
            kernel = next(downsample.parameters()).data  # of the convolution
            nn.init.dirac_(kernel[: kernel.shape[1]])

    def adapt(self, images: Tensor) -> None:
        assert isinstance(self.stem, WhitenedPatches)  # no other stem asks for images
        self.stem.fit(images)

    def forward(self, images: Tensor) -> Features:
        """Images (B, channels, H, W) of any size to `Features`; the last map is normalised as `tokens` are."""
        cells = self.stem(images)  # (B, stem_dim, H, W), smaller for patches above 2
        maps = []
        for downsample, stage in zip(self.downsamples, self.stages, strict=True):
            cells = downsample(cells)  # (B, C_i, height, width)
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
            return sum(self.depths[: int(rest[0])]) + 1
        return self.num_layers - 1 if part == "norm" else 0


class HybridBlock(nn.Module):
    """Convolutions, then attention, each added to what it is made of: (B, dim, height, width) as in and out.

    The convolutions' zero padding tells the attention where the borders are.

    Args:
        dim: channels.
        convolutions: how many of them, each 3x3 with batch norm and GELU.
        make_attention: builds an attention module, called as `module(tokens, grid)`.
        drop_path: probability that a sample skips a residual branch in training.
    """

    def __init__(self, dim: int, convolutions: int, make_attention: Callable[[], nn.Module], drop_path: float) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*(convolution(dim, dim) for _ in range(convolutions)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = make_attention()
        self.drop_path = drop_path

    def forward(self, cells: Tensor) -> Tensor:
        cells = cells + self.drop(self.convolutions(cells))
        grid = (cells.shape[-2], cells.shape[-1])
        tokens = cells.flatten(2).transpose(1, 2)  # (B, height * width, dim)
        attended = self.attention(self.norm(tokens), grid)
        return cells + self.drop(attended).transpose(1, 2).unflatten(2, grid)

    def drop(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop_path) if self.drop_path and self.training else branch


class WhitenedPatches(nn.Module):
    """Patches of images by filters whose outputs are uncorrelated: (B, C, H, W) to (B, 2 * C * patch_size^2, h, w).

    The filters and their negatives, then GELU. They are no parameters: `fit` computes them from images; until then they
    are those of images whose pixels are uncorrelated.

    Args:
        in_channels: C.
        patch_size: side of a patch in pixels.
        stride: pixels from patch to patch; the borders are repeated below and at the right, so h is ceil(H / stride).

    Source: Jordan 2024 (https://arxiv.org/abs/2404.00498), section 3.2.
    """

    filters: Tensor

    def __init__(self, in_channels: int, patch_size: int, stride: int) -> None:
        super().__init__()
        length = in_channels * patch_size**2
        self.in_channels, self.patch_size, self.stride = in_channels, patch_size, stride
        self.out_channels = 2 * length
        self.register_buffer("filters", torch.empty(self.out_channels, in_channels, patch_size, patch_size))
        self.set_filters(torch.eye(length))
        self.bias = nn.Parameter(torch.zeros(self.out_channels))

    def set_filters(self, rows: Tensor) -> None:
        """Takes filters (C * patch_size^2, C * patch_size^2), one a row, and their negatives."""
        self.filters.copy_(torch.cat([rows, -rows]).view_as(self.filters))

    @torch.no_grad()
    def fit(self, images: Tensor, epsilon: float = 5e-4) -> None:
        """Takes the eigenvectors of the covariance of the patches of images (B, C, H, W), each over its deviation.

        Args:
            epsilon: added to the variances, so that what hardly varies isn't blown up.
        """
        patches = functional.unfold(images.double(), self.patch_size)  # (B, C * patch_size^2, places)
        patches = patches.transpose(1, 2).flatten(0, 1)
        variances, vectors = torch.linalg.eigh(patches.T.cov())
        self.set_filters((vectors / (variances + epsilon).sqrt()).T)

    def forward(self, images: Tensor) -> Tensor:
        below, right = (self.patch_size - self.stride + -side % self.stride for side in images.shape[-2:])
        images = functional.pad(images, (0, right, 0, below), mode="replicate")
        return functional.gelu(functional.conv2d(images, self.filters.to(images.dtype), self.bias, self.stride))


def convolution(narrow: int, wide: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution, batch norm and GELU: (B, narrow, H, W) -> (B, wide, ceil(H / stride), ceil(W / stride))."""
    return nn.Sequential(nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=False), nn.BatchNorm2d(wide), nn.GELU())


def halving(narrow: int, wide: int) -> nn.Sequential:
    """A 3x3 convolution, max pooling, batch norm, GELU: (B, narrow, H, W) -> (B, wide, ceil(H / 2), ceil(W / 2))."""
    return nn.Sequential(
        nn.Conv2d(narrow, wide, 3, padding=1, bias=False),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.BatchNorm2d(wide),
        nn.GELU(),
    )


def convolutions_to_stride(in_channels: int, stem_dim: int, stride: int) -> nn.Sequential:
    """3x3 convolutions: (B, in_channels, H, W) -> (B, stem_dim, ceil(H / stride), ceil(W / stride))."""
    steps = [2] * (stride.bit_length() - 1) or [1]
    widths = [in_channels] + [stem_dim] * (len(steps) - 1)
    return nn.Sequential(*(convolution(width, stem_dim, step) for width, step in zip(widths, steps, strict=True)))


def local_hybrid_tiny(
    image_size: int | Sequence[int] = 224, patch_size: int | None = None, **overrides: Any
) -> LocalHybrid:
    """Three stages of 64, 256 and 256 channels, 3.7 M parameters; patches of 2 pixels, from 64 pixels on of 4."""
    return LocalHybrid(image_size, patch_size or stage_patch_size(image_size), **overrides)


def local_hybrid_32(
    image_size: int | Sequence[int] = 32, patch_size: int | None = None, **overrides: Any
) -> LocalHybrid:
    """The tiny one with whitened patches and one convolution in each block; 2.5 M parameters; for 32 pixels."""
    arguments: dict[str, Any] = {"stem": "whitening", "convolutions": 1} | overrides
    return local_hybrid_tiny(image_size, patch_size, **arguments)


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
    return LocalHybrid(image_size, patch_size or stage_patch_size(image_size), **arguments)
