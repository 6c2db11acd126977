"""RT-DETR's hybrid encoder: self-attention within the coarsest map, convolutions between the maps of all strides."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention import MultiHeadAttention
from visattn.backbones.conv_norm import ConvNorm, FoldableConvolution, activate
from visattn.backbones.embedding import sinusoids
from visattn.backbones.layers import Mlp


class HybridEncoder(nn.Module):
    """Maps of a backbone to as many maps of equal width, in which every place knows of all others.

    Args:
        channels: of the maps, finest first; each map has half the stride of the next.
        dim: channels of the resulting maps.
        depth: layers of self-attention on the coarsest map; 0 leaves them out.
        num_heads: of the self-attention.
        hidden_dim: of its MLPs.
        expansion: channels within the convolutional blocks, as a part of dim.
        activation: of the convolutions, "silu" or "relu".
        attention_activation: of the MLPs.
        dropout: probability in the layers of self-attention, in training.

    Raises:
        ValueError: dim has no place for sine and cosine along two axes.

    Source: Zhao et al. 2024 (RT-DETR, https://arxiv.org/abs/2304.08069), section 4.2 (AIFI and CCFF).
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int = 256,
        *,
        depth: int = 1,
        num_heads: int = 8,
        hidden_dim: int = 1024,
        expansion: float = 1.0,
        activation: str = "silu",
        attention_activation: str = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim {dim} of the encoder is not divisible by 4: sine and cosine along two axes share it")
        self.dim = dim
        self.projections = nn.ModuleList(ConvNorm(width, dim) for width in channels)
        self.layers = nn.ModuleList(
            PositionedLayer(dim, num_heads, hidden_dim, activation=attention_activation, dropout=dropout)
            for _ in range(depth)
        )
        steps, inner = len(channels) - 1, int(dim * expansion)
        self.laterals = nn.ModuleList(ConvNorm(dim, dim, activation=activation) for _ in range(steps))
        self.top_down = nn.ModuleList(CrossStageBlock(2 * dim, dim, inner, activation) for _ in range(steps))
        self.downsamples = nn.ModuleList(ConvNorm(dim, dim, 3, stride=2, activation=activation) for _ in range(steps))
        self.bottom_up = nn.ModuleList(CrossStageBlock(2 * dim, dim, inner, activation) for _ in range(steps))

    def forward(self, maps: Sequence[Tensor], padding: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i) to maps (B, dim, H_i, W_i).

        Args:
            padding: for each map (B, H_i, W_i), bool, True for cells beyond the image, which stay zero and are never
                attended to; None: there are none.
        """
        levels = [projection(one) for projection, one in zip(self.projections, maps, strict=True)]
        levels = without_padding(levels, padding)
        levels[-1] = self.attend(levels[-1], None if padding is None else padding[-1])
        for step, (lateral, block) in enumerate(zip(self.laterals, self.top_down, strict=True)):
            fine = len(levels) - 2 - step
            levels[fine + 1] = lateral(levels[fine + 1])
            larger = functional.interpolate(levels[fine + 1], size=levels[fine].shape[-2:], mode="nearest")
            levels[fine] = block(torch.cat([larger, levels[fine]], dim=1))
        levels = without_padding(levels, padding)
        for fine, (downsample, block) in enumerate(zip(self.downsamples, self.bottom_up, strict=True)):
            levels[fine + 1] = block(torch.cat([downsample(levels[fine]), levels[fine + 1]], dim=1))
        return without_padding(levels, padding)

    def attend(self, coarsest: Tensor, padding: Tensor | None) -> Tensor:
        """Self-attention among the cells of a map (B, dim, height, width)."""
        if not len(self.layers):
            return coarsest
        grid = (coarsest.shape[2], coarsest.shape[3])
        tokens = coarsest.flatten(2).transpose(1, 2)  # (B, height * width, dim)
        position = positions(grid, self.dim, tokens.device).to(tokens.dtype)
        mask = None if padding is None else ~padding.flatten(1)[:, None, None]  # (B, 1, 1, height * width)
        for layer in self.layers:
            tokens = layer(tokens, position, mask)
        return tokens.transpose(1, 2).unflatten(2, grid)


class CrossStageBlock(nn.Module):
    """Two projections of the channels, of which one passes three convolutions: (B, in, H, W) -> (B, out, H, W).

    Source: CSPNet (Wang et al. 2020, https://arxiv.org/abs/1911.11929), with RepVGG's convolutions, as RT-DETR joins
        them.
    """

    def __init__(self, in_channels: int, out_channels: int, inner: int, activation: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, inner, activation=activation)
        self.conv2 = ConvNorm(in_channels, inner, activation=activation)
        self.blocks = nn.Sequential(*(RepVggConvolution(inner, activation) for _ in range(3)))
        same = inner == out_channels
        self.conv3 = nn.Identity() if same else ConvNorm(inner, out_channels, activation=activation)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv3(self.blocks(self.conv1(features)) + self.conv2(features))


class RepVggConvolution(FoldableConvolution):
    """A 3x3 and a 1x1 convolution side by side, which are one 3x3 convolution in evaluation.

    Source: Ding et al. 2021, https://arxiv.org/abs/2101.03697.
    """

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        if self.runs_folded():
            return activate(self.convolve(features, [self.conv1, self.conv2]), self.activation)
        return activate(self.conv1(features) + self.conv2(features), self.activation)


class PositionedLayer(nn.Module):
    """A layer of the transformer's encoder whose positions are added to queries and keys, normalised after each sum."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, *, activation: str, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout=dropout, projection_dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_dim, activation=activation, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (B, N, dim), positions (N, dim), and a mask as `dot_product_attention` reads it."""
        tokens = self.norm1(tokens + self.attention(tokens, mask=mask, position=position))
        return self.norm2(tokens + self.mlp(tokens))


@functools.lru_cache(maxsize=16)
def positions(grid: tuple[int, int], dim: int, device: torch.device) -> Tensor:
    """The table of `sinusoids`, kept for the grids that come again and again."""
    with torch.inference_mode(False):  # what is made here for a picture may be used in training next
        return sinusoids(grid, dim).to(device)


def without_padding(maps: Sequence[Tensor], padding: Sequence[Tensor] | None) -> list[Tensor]:
    """Maps (B, C, H, W) with zeros in cells beyond the image."""
    if padding is None:
        return list(maps)
    return [one.masked_fill(beyond[:, None], 0.0) for one, beyond in zip(maps, padding, strict=True)]
