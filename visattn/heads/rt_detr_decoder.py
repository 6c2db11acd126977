"""RT-DETR's decoder: queries look at few points around their boxes, and move the boxes from layer to layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.attention import MultiHeadAttention
from visattn.attention.deformable import deformable_attention
from visattn.backbones.layers import Mlp


class Memory(NamedTuple):
    """The maps of an encoder as tokens.

    Attributes:
        tokens: (B, N, dim), the cells of each map in reading order, the maps behind each other, finest first.
        grids: (height, width) of each map.
        present: (B, N), bool, False where there is only padding; None: there is none.
    """

    tokens: Tensor
    grids: tuple[tuple[int, int], ...]
    present: Tensor | None


class RtDetrDecoder(nn.Module):
    """Queries and their first boxes to logits and boxes, layer by layer.

    Args:
        dim: channels of a token.
        num_classes: logits of a query.
        depth: layers.
        num_heads, points, offset_scale, sampling: see `BoxAttention`.
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
        self.cross_attention = BoxAttention(
            dim, num_heads, points=points, offset_scale=offset_scale, sampling=sampling, dropout=dropout
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_dim, activation=activation, dropout=dropout)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, position: Tensor, boxes: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """Queries and positions (B, Q, dim), boxes (B, Q, 4) to queries (B, Q, dim)."""
        queries = self.norm1(queries + self.attention(queries, mask=mask, position=position))
        queries = self.norm2(queries + self.cross_attention(queries + position, boxes, memory))
        return self.norm3(queries + self.mlp(queries))


class BoxAttention(nn.Module):
    """Each attention head of a query looks at a few points around the query's box in every map.

    Args:
        dim: channels of queries and tokens.
        num_heads: attention heads.
        points: how many each head samples on each map.
        offset_scale: what an offset of as many units as the map has points is worth, as a part of the box.
        sampling: "bilinear", or "nearest", which has no gradient for the places.
        dropout: probability that an output channel is dropped in training.

    Raises:
        ValueError: num_heads doesn't divide dim, or the sampling is unknown.

    Source: Zhu et al. 2021, https://arxiv.org/abs/2010.04159, section 4.1 and A.4; Lv et al. 2024 (RT-DETR v2,
        https://arxiv.org/abs/2407.17140), section 3.1, for the points of each map and the discrete sampling.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        points: Sequence[int],
        offset_scale: float = 0.5,
        sampling: str = "bilinear",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads don't divide {dim} channels; choose a divisor")
        if sampling not in ("bilinear", "nearest"):
            raise ValueError(f"sampling {sampling!r} is unknown; choose bilinear or nearest")
        self.num_heads, self.points, self.sampling = num_heads, tuple(points), sampling
        self.dropout = dropout
        samples = sum(self.points)
        self.offsets = nn.Linear(dim, num_heads * samples * 2)
        self.weights = nn.Linear(dim, num_heads * samples)
        self.value = nn.Linear(dim, dim)
        self.projection = nn.Linear(dim, dim)
        scale = torch.cat([torch.full((count, 1), offset_scale / count) for count in self.points])
        self.register_buffer("offset_scale", scale, persistent=False)  # (samples, 1)
        self.initialize()

    def initialize(self) -> None:
        """Draws new weights; each head looks in a direction of its own at first, each point farther than the last."""
        for layer in (self.value, self.projection):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=1)  # (heads, 2)
        directions = directions / directions.abs().amax(dim=1, keepdim=True)
        distances = torch.cat([torch.arange(1.0, count + 1) for count in self.points])  # (samples,)
        self.offsets.bias.data = (directions[:, None] * distances[:, None]).flatten()

    def forward(self, queries: Tensor, boxes: Tensor, memory: Memory) -> Tensor:
        """Queries (B, Q, dim) with their positions and boxes (B, Q, 4) to what they see, (B, Q, dim)."""
        value = self.value(memory.tokens)
        if memory.present is not None:
            value = value * memory.present[..., None]
        value = value.unflatten(2, (self.num_heads, -1))  # (B, N, heads, head_dim)
        offsets = self.offsets(queries).unflatten(2, (self.num_heads, -1, 2))  # (B, Q, heads, samples, 2)
        weights = self.weights(queries).unflatten(2, (self.num_heads, -1)).softmax(dim=-1)  # (B, Q, heads, samples)
        center, size = boxes[:, :, None, None].split(2, dim=-1)  # (B, Q, 1, 1, 2)
        locations = center + offsets * self.offset_scale * size
        seen = deformable_attention(value, locations, weights, memory.grids, self.points, sampling=self.sampling)
        return functional.dropout(self.projection(seen.flatten(2)), self.dropout, self.training)


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for width, next_width in itertools.pairwise(widths):
        layers += [nn.Linear(width, next_width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def inverse_sigmoid(parts: Tensor) -> Tensor:
    """The logits of numbers in [0, 1], in which numbers below 1e-5 count as 1e-5."""
    return (parts.clamp(min=1e-5) / (1 - parts).clamp(min=1e-5)).log()
