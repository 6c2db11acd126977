"""The layers of Deformable DETR: cells of several maps that look at each other, and queries that look at them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from visattn.attention import DeformableAttention, MultiHeadAttention
from visattn.backbones.layers import Mlp


class Pyramid(NamedTuple):
    """The cells of several maps of a batch, the maps behind each other.

    Attributes:
        cells: (B, S, dim).
        padding: (B, S), bool, True for cells beyond the image.
        parts: (B, maps, 2), how much of each map's width and height is image.
        grids: (height, width) of each map.
    """

    cells: Tensor
    padding: Tensor
    parts: Tensor
    grids: tuple[tuple[int, int], ...]


class DeformableEncoderLayer(nn.Module):
    """Every cell looks at a few points of every map, then an MLP; norms behind each.

    Args:
        dim: channels of a cell.
        num_heads: attention heads.
        levels, points: maps, and points that a head looks at in each of them.
        hidden_dim: channels within the MLP.
        dropout: probability on residual branches and within the MLP, in training.

    Source: Zhu et al. 2021, https://arxiv.org/abs/2010.04159, section 4.1.
    """

    def __init__(self, dim: int, num_heads: int, *, levels: int, points: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = DeformableAttention(dim, num_heads, levels=levels, points=points)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_dim, activation="relu", dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        initialize_linear(self.mlp)

    def forward(self, pyramid: Pyramid, positions: Tensor, reference: Tensor) -> Pyramid:
        """The pyramid with new cells.

        Args:
            positions: (B, S, dim), where each cell is, and on which map; added where cells look.
            reference: (B, S, levels, 2), where each cell is on each map, in parts of the map.
        """
        cells, padding, _, grids = pyramid
        seen = self.attention(cells + positions, reference, cells, grids, padding)
        cells = self.norm1(cells + self.dropout(seen))
        return pyramid._replace(cells=self.norm2(cells + self.mlp(cells)))


class DeformableDecoderLayer(nn.Module):
    """Queries look at each other, then at a few points of every map near their boxes, then an MLP; norms behind each.

    Args as `DeformableEncoderLayer`.

    Source: Zhu et al. 2021, https://arxiv.org/abs/2010.04159, section 4.1.
    """

    def __init__(self, dim: int, num_heads: int, *, levels: int, points: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(dim, num_heads, levels=levels, points=points)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_dim, activation="relu", dropout=dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        initialize_linear(self.mlp)
        initialize_linear(self.attention)

    def forward(
        self, queries: Tensor, positions: Tensor, reference: Tensor, pyramid: Pyramid, mask: Tensor | None = None
    ) -> Tensor:
        """Queries (B, Q, dim) to the same.

        Args:
            positions: (B, Q, dim), added where queries look.
            reference: (B, Q, 2 or 4), the queries' points or boxes as parts of the image.
            mask: bool, True where a query may see another; broadcasts to (B, heads, Q, Q).
        """
        queries = self.norm1(queries + self.dropout(self.attention(queries, mask=mask, position=positions)))
        parts = pyramid.parts if reference.shape[-1] == 2 else pyramid.parts.repeat(1, 1, 2)
        reference = reference[:, :, None] * parts[:, None]  # (B, Q, levels, 2 or 4), as parts of the padded maps
        seen = self.cross_attention(queries + positions, reference, pyramid.cells, pyramid.grids, pyramid.padding)
        queries = self.norm2(queries + self.dropout(seen))
        return self.norm3(queries + self.mlp(queries))


def initialize_linear(module: nn.Module) -> None:
    """Weights of linear layers uniform as by Glorot and Bengio (2010), biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def reference_points(pyramid: Pyramid) -> Tensor:
    """The center of each cell, found on each map: (B, S, levels, 2), x and y as parts of the padded maps."""
    return (cell_centers(pyramid)[:, :, None] * pyramid.parts[:, None]).to(pyramid.cells)


def cell_centers(pyramid: Pyramid) -> Tensor:
    """The center of each cell: (B, S, 2), x and y as parts of the image; beyond 1 in the padding."""
    centers = []
    for level, (height, width) in enumerate(pyramid.grids):
        y = (torch.arange(height, device=pyramid.parts.device) + 0.5) / height
        x = (torch.arange(width, device=pyramid.parts.device) + 0.5) / width
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)
        centers.append(grid / pyramid.parts[:, level, None])  # (B, height * width, 2)
    return torch.cat(centers, dim=1)
