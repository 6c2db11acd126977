"""DETR: a transformer reads the coarsest map of an image and names all its objects at once, as a set.

Source: Carion et al. 2020, https://arxiv.org/abs/2005.12872. The sections named below are of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from visattn.attention import MultiHeadAttention
from visattn.backbones.features import constructor_arguments
from visattn.backbones.layers import Mlp
from visattn.heads.detections import DetectionOutput, Detections
from visattn.heads.matching import set_targets
from visattn.heads.padded_maps import map_padding, map_positions
from visattn.heads.set_loss import SetLoss


class DetrHead(nn.Module):
    """The coarsest map of a backbone to one class and one box for each of a fixed number of queries.

    Most queries find nothing: the last class of the logits is "no object".

    Args:
        channels, strides: of the backbone's maps, finest first; only the last map is read.
        num_classes: without "no object".
        dim: channels of a token, a multiple of 4.
        num_heads: attention heads.
        encoder_depth, decoder_depth: blocks.
        feedforward_dim: channels within the MLPs of the blocks.
        num_queries: the most objects of an image that can be found.
        dropout: probability, in training, for attention weights and within and behind each branch.
        activation: of the MLPs of the blocks, a name that `make_activation` knows.
        no_object_weight: of the last class in the loss, since most queries are of it.
        class_weight, l1_weight, giou_weight: of the parts of the loss, and of the cost by which queries and objects
            are matched.
        auxiliary_loss: in training each decoder block predicts, with the same weights, and has a loss of its own.

    Attributes:
        arguments: all but the first three as plain data.

    Raises:
        ValueError: dim is no multiple of 4, num_heads doesn't divide it, or there is no query or no decoder block.

    Source: section 3.2 and appendix A.3, A.4.
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
        num_queries: int = 100,
        dropout: float = 0.1,
        activation: str = "relu",
        no_object_weight: float = 0.1,
        class_weight: float = 1.0,
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
        self.decoder = nn.ModuleList(DetrDecoderBlock(*sizes) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, num_classes + 1)
        self.box_head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4))
        self.set_loss = SetLoss(
            classification="softmax",
            class_weight=class_weight,
            l1_weight=l1_weight,
            giou_weight=giou_weight,
            class_cost=class_weight,
            l1_cost=l1_weight,
            giou_cost=giou_weight,
            no_object_weight=no_object_weight,
        )
        for block in (*self.encoder, *self.decoder):
            initialize_block(block)

    def forward(self, maps: Sequence[Tensor], padding: Tensor, sizes: Tensor) -> DetectionOutput:
        """What each query says.

        Args:
            maps: of the backbone, the last (B, channels[-1], height, width).
            padding: (B, H, W), bool, True where there is no image, at the right and at the bottom.
            sizes: (B, 2), long, not read: the padding tells them.

        Returns:
            Logits (B, num_queries, num_classes + 1), boxes (B, num_queries, 4).
        """
        features = self.input_projection(maps[-1])  # (B, dim, height, width)
        tokens = features.flatten(2).transpose(1, 2)  # (B, height * width, dim)
        position, mask = places_and_mask(padding, features)
        for block in self.encoder:
            tokens = block(tokens, position, mask)
        query_position = self.query_embedding.weight  # (num_queries, dim)
        queries = query_position.new_zeros(tokens.shape[0], *query_position.shape)  # (B, num_queries, dim)
        predictions = []
        for index, block in enumerate(self.decoder):
            queries = block(queries, query_position, tokens, position, mask)
            if index == len(self.decoder) - 1 or (self.training and self.auxiliary_loss):
                found = self.norm(queries)
                predictions.append((self.class_head(found), self.box_head(found).sigmoid()))
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
        """The surest class of each query but "no object", in pixels of the batch's images, the surest queries first."""
        return self(maps, padding, sizes).detections(sizes, max_detections, softmax=True)


class DetrEncoderBlock(nn.Module):
    """Self-attention and an MLP, each normalised behind: tokens (B, N, dim) in and out.

    Source: figure 10.
    """

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout=dropout, projection_dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, feedforward_dim, activation=activation, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """Args: position (B or 1, N, dim) of the tokens; mask (B, 1, 1, N), bool, True for those to be seen."""
        tokens = self.norm1(tokens + self.attention(tokens, position=position, mask=mask))
        return self.norm2(tokens + self.mlp(tokens))


class DetrDecoderBlock(nn.Module):
    """Attention among the queries, attention to the image, and an MLP: queries (B, num_queries, dim) in and out.

    Source: figure 10.
    """

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, activation: str, dropout: float) -> None:
        super().__init__()
        rates: dict[str, Any] = {"dropout": dropout, "projection_dropout": dropout}
        self.attention = MultiHeadAttention(dim, num_heads, **rates)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attention = MultiHeadAttention(dim, num_heads, context_dim=dim, **rates)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, feedforward_dim, activation=activation, dropout=dropout)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self, queries: Tensor, query_position: Tensor, tokens: Tensor, position: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Args: query_position (num_queries, dim); the rest are those of the image, as in `DetrEncoderBlock`."""
        queries = self.norm1(queries + self.attention(queries, position=query_position))
        seen = self.cross_attention(
            queries, context=tokens, mask=mask, position=query_position, context_position=position
        )
        queries = self.norm2(queries + seen)
        return self.norm3(queries + self.mlp(queries))


def initialize_block(block: nn.Module) -> None:
    """Draws matrices from a range that depends on their width, as published; attention starts without biases.

    Source: Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html, equation 16.
    """
    for name, parameter in block.named_parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
        elif "attention" in name:
            nn.init.zeros_(parameter)


def places_and_mask(padding: Tensor, features: Tensor) -> tuple[Tensor, Tensor | None]:
    """What attention has to know of the padding (B, H, W) of a batch, for a map (B, dim, height, width).

    Returns:
        Positions (B, height * width, dim), or (1, ...) where all are the same; and a mask (B, 1, 1, height * width),
        bool, True for cells within the image, or None where all are.

    Source: appendix A.4.
    """
    dim, height, width = features.shape[1:]
    cells = map_padding(padding, (height, width))  # (B, height, width)
    mask: Tensor | None = ~cells.flatten(1)[:, None, None]
    if not cells.any():
        cells, mask = cells[:1], None
    return map_positions(cells, dim, centered=False).to(features.dtype), mask
