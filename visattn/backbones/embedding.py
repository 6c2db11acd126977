"""From pixels to tokens: patch embeddings, and position embeddings that fit any size."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.backbones.conv_norm import ConvNorm


class PatchEmbedding(nn.Module):
    """Cuts images into patches and maps each linearly to a token: (B, channels, H, W) -> (B, N, dim).

    Sizes that the patch doesn't divide are padded with zeros at the right and at the bottom.

    Args:
        in_channels: of the images.
        dim: channels of a token.
        patch_size: side of a patch in pixels.
        bias: of the projection.
        norm: applied to the tokens; None leaves it out.
    """

    def __init__(
        self, in_channels: int, dim: int, patch_size: int, bias: bool = True, norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size, bias=bias)
        self.norm = norm

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, channels, H, W) to tokens (B, height * width, dim) and (height, width) in patches."""
        images = pad_to_multiple(images, self.patch_size)
        batch, channels, image_height, image_width = images.shape
        size = self.patch_size
        height, width = image_height // size, image_width // size
        # A convolution whose stride is its kernel is one matrix product, and that runs at the speed of matrix products.
        patches = images.reshape(batch, channels, height, size, width, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width, channels * size * size)
        tokens = functional.linear(patches, self.projection.weight.flatten(1), self.projection.bias)  # (B, N, dim)
        return (tokens if self.norm is None else self.norm(tokens)), (height, width)


class ConvolutionalEmbedding(nn.Module):
    """Tokens from a few 3x3 convolutions of stride 2 instead of one large patch; trains faster and steadier.

    Args:
        in_channels: of the images.
        dim: channels of a token.
        patch_size: pixels per token along one axis, a power of two.

    Raises:
        ValueError: patch_size is no power of two.

    Source: Xiao et al. 2021, https://arxiv.org/abs/2106.14881.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        steps = patch_size.bit_length() - 1
        if patch_size != 2**steps or steps < 1:
            raise ValueError(f"patch_size {patch_size} doesn't fit a convolutional stem; choose a power of two from 2")
        self.patch_size = patch_size
        widths = [in_channels] + [max(dim >> (steps - step), 16) for step in range(1, steps + 1)]
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            convolution = nn.Conv2d(narrow, wide, kernel_size=3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*layers)
        self.projection = nn.Conv2d(widths[-1], dim, kernel_size=1)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, channels, H, W) to tokens (B, height * width, dim) and (height, width) in patches."""
        features = self.projection(self.stem(pad_to_multiple(images, self.patch_size)))  # (B, dim, height, width)
        height, width = features.shape[-2:]
        return features.flatten(2).transpose(1, 2), (height, width)


class OverlappingEmbedding(nn.Module):
    """Tokens from patches that overlap, by a kernel of 2 * stride - 1: (B, channels, H, W) -> (B, N, dim).

    N is ceil(H / stride) * ceil(W / stride).

    Args:
        in_channels: of the images, or of the map that gets coarser.
        dim: channels of a token.
        stride: pixels from patch to patch.
        norm: applied to the tokens; None leaves it out.
        stem_dim: channels of two 3x3 convolutions with batch norms before the patches; None leaves them out.

    Source: Wang et al. 2022 (PVT v2, https://arxiv.org/abs/2106.13797), section 3.3.
    """

    def __init__(
        self, in_channels: int, dim: int, stride: int, norm: nn.Module | None = None, stem_dim: int | None = None
    ) -> None:
        super().__init__()
        self.stem: nn.Module | None = None
        if stem_dim is not None:
            wide = ConvNorm(in_channels, stem_dim, 3, activation="relu")
            self.stem = nn.Sequential(wide, ConvNorm(stem_dim, stem_dim, 3, activation="relu"))
        self.projection = nn.Conv2d(stem_dim or in_channels, dim, 2 * stride - 1, stride, padding=stride - 1)
        self.norm = norm

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, channels, H, W) to tokens (B, height * width, dim) and (height, width) in patches."""
        cells = self.projection(images if self.stem is None else self.stem(images))  # (B, dim, height, width)
        tokens = cells.flatten(2).transpose(1, 2)
        return (tokens if self.norm is None else self.norm(tokens)), (cells.shape[2], cells.shape[3])


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pads (B, C, H, W) with zeros at the right and at the bottom until `multiple` divides both sides."""
    bottom, right = -images.shape[-2] % multiple, -images.shape[-1] % multiple
    return functional.pad(images, (0, right, 0, bottom)) if bottom or right else images


def resample_positions(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], antialias: bool = True
) -> Tensor:
    """Fits a table of position embeddings to another grid, bicubically.

    Args:
        positions: (1, prefix + height * width, C); the prefix tokens' entries stay as they are.
        old_grid: (height, width) that the table is for.
        new_grid: (height, width) wanted.
        antialias: low-pass filter before shrinking, as timm does and transformers doesn't.

    Returns:
        (1, prefix + new height * new width, C).
    """
    if old_grid == new_grid:
        return positions
    prefix = positions.shape[1] - old_grid[0] * old_grid[1]
    table = positions[:, prefix:].float().unflatten(1, old_grid).permute(0, 3, 1, 2)  # (1, C, height, width)
    table = functional.interpolate(table, size=new_grid, mode="bicubic", antialias=antialias, align_corners=False)
    table = table.flatten(2).transpose(1, 2).to(positions.dtype)  # (1, new height * new width, C)
    return torch.cat([positions[:, :prefix], table], dim=1) if prefix else table


def sinusoids(grid: tuple[int, int], dim: int) -> Tensor:
    """Waves of falling frequency along both axes: (height * width, dim); a rest of dim that 4 doesn't divide is 0."""
    quarter = dim // 4
    frequencies = 10_000.0 ** -(torch.arange(quarter) / quarter)
    angles = [torch.arange(side)[:, None] * frequencies for side in grid]  # (height, dim / 4), (width, dim / 4)
    rows, columns = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in angles)
    table = torch.zeros(*grid, dim)
    table[..., : 2 * quarter] = rows[:, None]
    table[..., 2 * quarter : 4 * quarter] = columns
    return table.flatten(0, 1)
