"""RT-DETR's decoder: queries look at few points around their boxes, and move the boxes from layer to layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from visattn.attention import DeformableAttention, MultiHeadAttention
from visattn.backbones.layers import Mlp


class Memory(NamedTuple):
    """The maps of an encoder as tokens.

    Attributes:
        tokens: (B, N, dim), the cells of each map in reading order, the maps behind each other, finest first.
        grids: (height, width) of each map.
        padding: (B, N), bool, True for cells beyond the image; None: there are none.
    """

    tokens: Tensor
    grids: tuple[tuple[int, int], ...]
    padding: Tensor | None


class RtDetrDecoder(nn.Module):
    """Queries and their first boxes to logits and boxes, layer by layer.

    Args:
        dim: channels of a token.
        num_classes: logits of a query.
        depth: layers.
        num_heads, points, offset_scale, sampling: see `DeformableAttention`.
        hidden_dim, activation: of the MLPs.
        dropout: probability in training.

    Source: Zhao et al. 2024, https://arxiv.org/abs/2304.08069, section 4.1; boxes are refined as by Zhu et al. 2021
        (https://arxiv.org/abs/2010.04159), A.4, and queries know their boxes as in DAB-DETR (Liu et al. 2022,
        https://arxiv.org/abs/2201.12329), section 4.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        depth: int,
        num_heads: int,
        hidden_dim: int,
        points: Sequence[int],
        offset_scale: float,
        sampling: str,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            RtDetrDecoderLayer(
                dim,
                num_heads,
                hidden_dim,
                points=points,
                offset_scale=offset_scale,
                sampling=sampling,
                activation=activation,
                dropout=dropout,
            )
            for _ in range(depth)
        )
        self.query_position = perceptron(4, 2 * dim, dim)
        self.class_heads = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(depth))
        self.box_heads = nn.ModuleList(perceptron(dim, dim, dim, 4) for _ in range(depth))

    def forward(
        self, queries: Tensor, boxes: Tensor, memory: Memory, mask: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """What each layer says, in training; in evaluation what the last one says.

        Args:
            queries: (B, Q, dim).
            boxes: (B, Q, 4), center x, center y, width and height as parts of the maps' width and height.
            memory: of the encoder.
            mask: (Q, Q), bool, True where a query may see another; None: everywhere.

        Returns:
            Logits (B, Q, classes) and boxes (B, Q, 4).
        """
        predictions = []
        for layer, class_head, box_head in zip(self.layers, self.class_heads, self.box_heads, strict=True):
            queries = layer(queries, self.query_position(boxes), boxes, memory, mask)
            refined = (box_head(queries) + inverse_sigmoid(boxes)).sigmoid()
            if self.training or layer is self.layers[-1]:
                predictions.append((class_head(queries), refined))
            boxes = refined.detach()
        return predictions


class RtDetrDecoderLayer(nn.Module):
    """Attention among the queries, to the image, and an MLP, normalised after each sum."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        points: Sequence[int],
        offset_scale: float,
        sampling: str,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout=dropout, projection_dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(
            dim, num_heads, levels=len(points), points=points, offset_scale=offset_scale, sampling=sampling
        )
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_dim, activation=activation, dropout=dropout)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, position: Tensor, boxes: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """Queries and positions (B, Q, dim), boxes (B, Q, 4) to queries (B, Q, dim)."""
        queries = self.norm1(queries + self.attention(queries, mask=mask, position=position))
        seen = self.cross_attention(queries + position, boxes[:, :, None], memory.tokens, memory.grids, memory.padding)
        queries = self.norm2(queries + self.dropout(seen))
        return self.norm3(queries + self.mlp(queries))


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for width, next_width in itertools.pairwise(widths):
        layers += [nn.Linear(width, next_width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def inverse_sigmoid(parts: Tensor) -> Tensor:
    """The logits of numbers in [0, 1], in which numbers below 1e-5 count as 1e-5."""
    return (parts.clamp(min=1e-5) / (1 - parts).clamp(min=1e-5)).log()
