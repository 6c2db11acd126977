"""Conditional DETR: DETR whose queries look for contents and for places apart, and learn it in fewer epochs.

Source: Meng et al. 2021, https://arxiv.org/abs/2108.06152. The sections named below are of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visattn.attention import MultiHeadAttention
from visattn.backbones.features import constructor_arguments
from visattn.backbones.layers import Mlp
from visattn.heads.detections import DetectionOutput, Detections
from visattn.heads.detr import DetrEncoderBlock, initialize_block, places_and_mask
from visattn.heads.matching import set_targets
from visattn.heads.padded_maps import waves
from visattn.heads.set_loss import SetLoss


class ConditionalDetrHead(nn.Module):
    """The coarsest map of a backbone to classes, each judged by itself, and a box for each of a number of queries.

    Args:
        channels, strides: of the backbone's maps, finest first; only the last map is read.
        num_classes: of objects.
        dim: channels of a token, a multiple of 4.
        num_heads: attention heads.
        encoder_depth, decoder_depth: blocks.
        feedforward_dim: channels within the MLPs of the blocks.
        num_queries: places at which objects are looked for.
        dropout: probability, in training, for attention weights and within and behind each branch.
        activation: of the MLPs of the blocks, a name that `make_activation` knows.
        class_weight, l1_weight, giou_weight: of the parts of the loss, and of the cost by which queries and objects
            are matched.
        auxiliary_loss: in training each decoder block predicts, with the same weights, and has a loss of its own.

    Attributes:
        arguments: all but the first three as plain data.

    Raises:
        ValueError: dim is no multiple of 4, num_heads doesn't divide it, or there is no query or no decoder block.

    Source: section 3.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        dim: int = 256,
        num_heads: int = 8,
        encoder_depth: int = 6,
        decoder_depth: int = 6,
        feedforward_dim: int = 2048,
        num_queries: int = 300,
        dropout: float = 0.1,
        activation: str = "relu",
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        auxiliary_loss: bool = True,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim {dim} must be a multiple of 4: sine and cosine of rows and of columns")
        if min(decoder_depth, num_queries) < 1:
            raise ValueError(f"decoder_depth {decoder_depth} and num_queries {num_queries} must be at least 1")
        self.arguments: dict[str, Any] = {
            name: value for name, value in arguments.items() if name not in ("channels", "strides", "num_classes")
        }
        self.num_classes, self.auxiliary_loss = num_classes, auxiliary_loss
        self.input_projection = nn.Conv2d(channels[-1], dim, kernel_size=1)
        sizes = (dim, num_heads, feedforward_dim, activation, dropout)
        self.encoder = nn.ModuleList(DetrEncoderBlock(*sizes) for _ in range(encoder_depth))
        self.query_embedding = nn.Embedding(num_queries, dim)
        self.reference_head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 2))
        self.place_scale = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.decoder = nn.ModuleList(
            ConditionalDecoderBlock(*sizes, is_first=index == 0) for index in range(decoder_depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, num_classes)
        self.box_head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4))
        self.set_loss = SetLoss(
            class_weight=class_weight,
            l1_weight=l1_weight,
            giou_weight=giou_weight,
            class_cost=class_weight,
            l1_cost=l1_weight,
            giou_cost=giou_weight,
        )
        self.initialize()

    def initialize(self) -> None:
        """Draws new weights: at first every class has a probability of 0.01, and boxes lie at their reference points.

        Source: the authors' models/conditional_detr.py.
        """
        for part in (*self.encoder, *self.decoder, self.reference_head, self.place_scale):
            initialize_block(part)
        nn.init.constant_(self.class_head.bias, -math.log(99))
        for parameter in self.box_head[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Sequence[Tensor], padding: Tensor, sizes: Tensor) -> DetectionOutput:
        """What each query says.

        Args:
            maps: of the backbone, the last (B, channels[-1], height, width).
            padding: (B, H, W), bool, True where there is no image, at the right and at the bottom.
            sizes: (B, 2), long, not read: the padding tells them.

        Returns:
            Logits (B, num_queries, num_classes), boxes (B, num_queries, 4).
        """
        features = self.input_projection(maps[-1])  # (B, dim, height, width)
        tokens = features.flatten(2).transpose(1, 2)  # (B, height * width, dim)
        position, mask = places_and_mask(padding, features)
        for block in self.encoder:
            tokens = block(tokens, position, mask)
        query_position = self.query_embedding.weight  # (num_queries, dim)
        reference = self.reference_head(query_position)  # (num_queries, 2), logits of x and y
        place = waves(reference.sigmoid().flip(1), query_position.shape[1] // 2).flatten(1)  # (num_queries, dim)
        queries = query_position.new_zeros(tokens.shape[0], *query_position.shape)  # (B, num_queries, dim)
        predictions = []
        for index, block in enumerate(self.decoder):
            scaled = place * self.place_scale(queries) if index else place
            queries = block(queries, query_position, scaled, tokens, position, mask)
            if index == len(self.decoder) - 1 or (self.training and self.auxiliary_loss):
                found = self.norm(queries)
                offsets = self.box_head(found)  # (B, num_queries, 4)
                boxes = torch.cat([offsets[..., :2] + reference, offsets[..., 2:]], dim=-1).sigmoid()
                predictions.append((self.class_head(found), boxes))
        return DetectionOutput(*predictions[-1], tuple(predictions[:-1]))

    def loss(
        self, maps: Sequence[Tensor], padding: Tensor, sizes: Tensor, targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """The parts of the loss, scalars whose sum is trained.

        Args:
            targets: of each image "boxes" (n, 4), left, top, right and bottom in pixels, and "labels" (n,).
        """
        return self.set_loss(self(maps, padding, sizes), set_targets(targets, sizes))

    def predict(
        self, maps: Sequence[Tensor], padding: Tensor, sizes: Tensor, *, max_detections: int = 100
    ) -> list[Detections]:
        """The surest pairs of query and class, in pixels of the batch's images."""
        return self(maps, padding, sizes).detections(sizes, max_detections)


class ConditionalDecoderBlock(nn.Module):
    """Attention among the queries, attention to the image, and an MLP: queries (B, num_queries, dim) in and out.

    Source: figure 3.
    """

    def __init__(
        self, dim: int, num_heads: int, feedforward_dim: int, activation: str, dropout: float, *, is_first: bool
    ) -> None:
        super().__init__()
        self.attention = ConditionalSelfAttention(dim, num_heads, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attention = ConditionalCrossAttention(dim, num_heads, dropout=dropout, is_first=is_first)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, feedforward_dim, activation=activation, dropout=dropout)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        query_position: Tensor,
        place: Tensor,
        tokens: Tensor,
        position: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Queries through the block.

        Args:
            query_position: (num_queries, dim), learned.
            place: (num_queries, dim) or (B, num_queries, dim), waves of where each query looks.
            tokens: (B, N, dim) of the image.
            position: (B or 1, N, dim) of these.
            mask: (B, 1, 1, N), bool, True for those to be seen.
        """
        queries = self.norm1(queries + self.attention(queries, query_position))
        seen = self.cross_attention(queries, query_position, place, tokens, position, mask)
        queries = self.norm2(queries + seen)
        return self.norm3(queries + self.mlp(queries))


class ConditionalSelfAttention(MultiHeadAttention):
    """Self-attention to whose queries and keys positions are added by linear layers of their own."""

    def __init__(self, dim: int, num_heads: int, *, dropout: float) -> None:
        super().__init__(dim, num_heads, dropout=dropout, projection_dropout=dropout)
        self.place = nn.Linear(dim, 2 * dim)

    def forward(self, queries: Tensor, query_position: Tensor) -> Tensor:  # type: ignore[override]
        """Queries (B, num_queries, dim) and their positions (num_queries, dim) to (B, num_queries, dim)."""
        query, key, value = self.heads(queries, None)  # (B, heads, num_queries, head_dim)
        query_place, key_place = by_head(self.place(query_position), 2 * self.num_heads).chunk(2)
        return self.project(self.attend(query + query_place, key + key_place, value, None, None, False, None))


class ConditionalCrossAttention(MultiHeadAttention):
    """Attention whose scores are those of contents plus those of places, each by its own queries and keys.

    In the first block, whose queries hold no content yet, learned positions and those of the image are added to the
    contents.

    Source: section 3.3, equation 4.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float, is_first: bool) -> None:
        super().__init__(dim, num_heads, context_dim=dim, dropout=dropout, projection_dropout=dropout)
        self.query_place = nn.Linear(dim, dim)
        self.key_place = nn.Linear(dim, dim)
        self.query_position = nn.Linear(dim, dim) if is_first else None

    def forward(  # type: ignore[override]
        self,
        queries: Tensor,
        query_position: Tensor,
        place: Tensor,
        tokens: Tensor,
        position: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Args as `ConditionalDecoderBlock.forward`."""
        query, key, value = self.heads(queries, tokens)  # (B, heads, num_queries or N, head_dim)
        query_place = by_head(self.query_place(place), self.num_heads)
        key_place = by_head(self.key_place(position), self.num_heads)
        if self.query_position is not None:
            query = query + by_head(self.query_position(query_position), self.num_heads)
            key = key + key_place
        query = torch.cat([query, query_place.expand_as(query)], dim=-1)  # (B, heads, num_queries, 2 * head_dim)
        key = torch.cat([key, key_place.expand_as(key)], dim=-1)  # (B, heads, N, 2 * head_dim)
        return self.project(self.attend(query, key, value, mask, None, False, None))


def by_head(tokens: Tensor, num_heads: int) -> Tensor:
    """(..., N, heads * head_dim) to (..., heads, N, head_dim)."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(-3, -2)
