"""RT-DETR: a hybrid encoder, the surest places of its maps as queries, and a decoder that refines their boxes."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visattn.backbones.conv_norm import ConvNorm
from visattn.backbones.features import constructor_arguments
from visattn.heads.denoising import denoising_queries
from visattn.heads.detections import DetectionOutput, Detections
from visattn.heads.feature_pyramid import FeaturePyramid
from visattn.heads.hybrid_encoder import HybridEncoder
from visattn.heads.matching import set_targets
from visattn.heads.padded_maps import map_padding
from visattn.heads.rt_detr_decoder import Memory, RtDetrDecoder, perceptron
from visattn.heads.set_loss import SetLoss, objects_per_process


class RtDetrHead(nn.Module):
    """The maps of any backbone to a set of objects, in real time; also RT-DETR v2.

    Args:
        channels, strides: of the backbone's maps, finest first.
        num_classes: of objects.
        levels: the maps that are read, by the logarithm of their stride; if the backbone lacks one, a `FeaturePyramid`
            makes them all.
        encoder_dim, encoder_depth, encoder_heads, encoder_hidden_dim, expansion: of the `HybridEncoder`.
        activation, attention_activation: of its convolutions and of the MLPs in its self-attention layers.
        dim: channels of the decoder.
        num_queries: how many objects an image has at most.
        depth, num_heads, hidden_dim, decoder_activation: layers of the decoder, their attention heads, and channels and
            activation of their MLPs.
        points, offset_scale, sampling: see `DeformableAttention`; one number of points holds for every level.
        dropout: probability in training.
        denoising_queries: in training, about as many noisy copies of the objects are to be repaired; 0 leaves it out.
        label_noise: part of the copies whose label is drawn anew, but for half of them.
        box_noise: how far their corners move, as a part of half the box; the corners of those that are to be told from
            objects move up to twice as far.

    Attributes:
        arguments: all but the first three as plain data.

    Raises:
        ValueError: a name is unknown, or dims, heads, levels or points don't fit each other.

    Source: Zhao et al. 2024, https://arxiv.org/abs/2304.08069; Lv et al. 2024, https://arxiv.org/abs/2407.17140.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        levels: Sequence[int] = (3, 4, 5),
        encoder_dim: int = 256,
        encoder_depth: int = 1,
        encoder_heads: int = 8,
        encoder_hidden_dim: int = 1024,
        expansion: float = 1.0,
        activation: str = "silu",
        attention_activation: str = "gelu",
        dim: int = 256,
        num_queries: int = 300,
        depth: int = 6,
        num_heads: int = 8,
        hidden_dim: int = 1024,
        decoder_activation: str = "relu",
        points: int | Sequence[int] = 4,
        offset_scale: float = 0.5,
        sampling: str = "bilinear",
        dropout: float = 0.0,
        denoising_queries: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__()
        self.arguments: dict[str, Any] = {
            name: value for name, value in arguments.items() if name not in ("channels", "strides", "num_classes")
        }
        points = (points,) * len(levels) if isinstance(points, int) else tuple(points)
        if len(points) != len(levels):
            raise ValueError(f"points {points} must be one number for each of the levels {tuple(levels)}")
        self.num_classes, self.num_queries = num_classes, num_queries
        self.denoising_queries, self.label_noise, self.box_noise = denoising_queries, label_noise, box_noise
        self.maps = LevelMaps(channels, strides, levels, encoder_dim)
        self.encoder = HybridEncoder(
            self.maps.channels,
            encoder_dim,
            depth=encoder_depth,
            num_heads=encoder_heads,
            hidden_dim=encoder_hidden_dim,
            expansion=expansion,
            activation=activation,
            attention_activation=attention_activation,
            dropout=dropout,
        )
        self.projections = nn.ModuleList(ConvNorm(encoder_dim, dim) for _ in levels)
        self.selection = QuerySelection(dim, num_classes, num_queries)
        self.decoder = RtDetrDecoder(
            dim,
            num_classes,
            depth=depth,
            num_heads=num_heads,
            hidden_dim=hidden_dim,
            points=points,
            offset_scale=offset_scale,
            sampling=sampling,
            activation=decoder_activation,
            dropout=dropout,
        )
        self.label_embedding = nn.Embedding(num_classes, dim) if denoising_queries else None
        self.set_loss = SetLoss(classification="varifocal", class_weight=1.0, alpha=0.75)

    def forward(self, maps: Sequence[Tensor], padding: Tensor, sizes: Tensor) -> DetectionOutput:
        """What each query says, the surest places first.

        Args:
            maps: of the backbone, (B, C_i, H_i, W_i).
            padding: (B, H, W), bool, True where there is no image, at the right and at the bottom.
            sizes: (B, 2), long, height and width of each image within the batch.

        Returns:
            Logits (B, queries, classes) and boxes (B, queries, 4), at most num_queries and as many as the maps have
            cells; in training the selection's and the earlier layers' as auxiliary.
        """
        memory = self.encode(maps, padding)
        first = self.selection(memory)
        layers = self.decoder(first.queries, first.boxes.detach(), memory)
        return self.output(first, layers, image_parts(padding, sizes))

    def loss(
        self, maps: Sequence[Tensor], padding: Tensor, sizes: Tensor, targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """The weighted parts of the loss; in training also of the layers before the last, and of repaired objects.

        Args:
            targets: of each image "boxes" (n, 4), left, top, right and bottom in pixels, and "labels" (n,).
        """
        truth = set_targets(targets, sizes)
        parts = image_parts(padding, sizes)
        memory = self.encode(maps, padding)
        first = self.selection(memory)
        queries, boxes, mask = first.queries, first.boxes.detach(), None
        noisy = None
        if self.training and self.label_embedding is not None:
            noisy = denoising_queries(
                truth,
                self.num_classes,
                queries=self.denoising_queries,
                label_noise=self.label_noise,
                box_noise=self.box_noise,
            )
            queries = queries + 0 * self.label_embedding.weight.sum()  # has a gradient in each step, as DDP wants
        if noisy is not None and self.label_embedding is not None:
            mask = noisy.mask(queries.shape[1])
            queries = torch.cat([self.label_embedding(noisy.labels).to(queries.dtype), queries], dim=1)
            boxes = torch.cat([noisy.boxes * parts, boxes], dim=1)
        layers = self.decoder(queries, boxes, memory, mask)
        count = 0 if noisy is None else noisy.labels.shape[1]
        found = [(logits[:, count:], refined[:, count:]) for logits, refined in layers]
        losses = self.set_loss(self.output(first, found, parts), truth)
        if noisy is not None:
            logits = torch.stack([layer[0][:, :count] for layer in layers])  # (layers, B, count, classes)
            repaired = torch.stack([layer[1][:, :count] for layer in layers]) / parts
            assignment = noisy.assignment.expand(len(layers), -1, -1)
            number = objects_per_process(truth) * noisy.groups
            losses["denoising"] = self.set_loss.assigned(logits, repaired, assignment, truth, number).sum()
        return losses

    @torch.no_grad()
    def predict(
        self, maps: Sequence[Tensor], padding: Tensor, sizes: Tensor, *, max_detections: int = 100
    ) -> list[Detections]:
        """The surest pairs of a query and a class, in pixels of the batch's images."""
        return self(maps, padding, sizes).detections(sizes, max_detections)

    def encode(self, maps: Sequence[Tensor], padding: Tensor) -> Memory:
        """Maps of the backbone to what the decoder looks at."""
        levels = self.maps(maps)
        grids = tuple((level.shape[2], level.shape[3]) for level in levels)
        beyond = [map_padding(padding, grid) for grid in grids] if padding.any() else None
        encoded = self.encoder(levels, beyond)
        tokens = [
            projection(level).flatten(2).transpose(1, 2)  # (B, height * width, dim)
            for projection, level in zip(self.projections, encoded, strict=True)
        ]
        flat = None if beyond is None else torch.cat([one.flatten(1) for one in beyond], dim=1)
        return Memory(torch.cat(tokens, dim=1), grids, flat)

    def output(self, first: Selection, layers: Sequence[tuple[Tensor, Tensor]], parts: Tensor) -> DetectionOutput:
        """The boxes of the maps as boxes of the images."""
        layers = [(logits, boxes / parts) for logits, boxes in layers]
        earlier = ((first.logits, first.boxes / parts), *layers[:-1]) if self.training else ()
        return DetectionOutput(*layers[-1], earlier)


class LevelMaps(nn.Module):
    """Those of a backbone's maps whose strides are powers of two of the levels, or a pyramid of all levels."""

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], levels: Sequence[int], pyramid_channels: int
    ) -> None:
        super().__init__()
        wanted = [2**level for level in levels]
        present = all(stride in strides for stride in wanted)
        self.chosen = [list(strides).index(stride) for stride in wanted] if present else []
        self.pyramid = None if present else FeaturePyramid(channels, strides, pyramid_channels, levels)
        self.channels = tuple(channels[index] for index in self.chosen) or (pyramid_channels,) * len(wanted)

    def forward(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        return [maps[index] for index in self.chosen] if self.pyramid is None else self.pyramid(maps)


class Selection(NamedTuple):
    """The places of the maps that look most like objects.

    Attributes:
        queries: (B, Q, dim), without gradients.
        logits: (B, Q, classes).
        boxes: (B, Q, 4), center x, center y, width and height as parts of the maps' width and height.
    """

    queries: Tensor
    logits: Tensor
    boxes: Tensor


class QuerySelection(nn.Module):
    """Classifies every cell of the maps and takes the surest as queries, with boxes that differ from an anchor.

    Source: Zhao et al. 2024, https://arxiv.org/abs/2304.08069, section 4.3; anchors as in Deformable DETR's two stages
        (Zhu et al. 2021, https://arxiv.org/abs/2010.04159), A.4.
    """

    def __init__(self, dim: int, num_classes: int, num_queries: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.projection = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, num_classes)
        self.box_head = perceptron(dim, dim, dim, 4)

    def forward(self, memory: Memory) -> Selection:
        tokens = memory.tokens  # (B, N, dim)
        boxes, usable = anchors(memory.grids, tokens.device)  # (N, 4), (N, 1)
        features = self.norm(self.projection(tokens * usable))
        logits = self.class_head(features)  # (B, N, classes)
        scores = logits.detach().amax(dim=2)
        if memory.padding is not None:
            scores = scores.masked_fill(memory.padding, -math.inf)
        places = scores.topk(min(self.num_queries, scores.shape[1]), dim=1).indices  # (B, Q)
        rows = places[..., None]
        features = features.gather(1, rows.expand(-1, -1, features.shape[2]))
        logits = logits.gather(1, rows.expand(-1, -1, logits.shape[2]))
        # The boxes of the other cells are never asked for.
        return Selection(features.detach(), logits, (self.box_head(features) + boxes[places]).sigmoid())


@functools.lru_cache(maxsize=16)
def anchors(grids: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The box that each cell of the maps starts from, as logits, (N, 4); and which cells may be used, (N, 1), bool.

    A box is 0.05 of the maps' width and height on the finest, and twice as large on each next one. Cells whose box has
    a part within 0.01 of 0 or 1 are left out, and their logits are so great that all parts are 1.
    """
    with torch.inference_mode(False):  # what is made here for a picture may be used in training next
        boxes = []
        for level, (height, width) in enumerate(grids):
            y, x = ((torch.arange(side, device=device) + 0.5) / side for side in (height, width))
            size = torch.full((height, width), 0.05 * 2.0**level, device=device)
            box = torch.stack([x.expand(height, width), y[:, None].expand(height, width), size, size], dim=2)
            boxes.append(box.flatten(0, 1))
        parts = torch.cat(boxes)  # (N, 4)
        usable = ((parts > 0.01) & (parts < 0.99)).all(dim=1, keepdim=True)
        return parts.logit().masked_fill(~usable, torch.finfo(parts.dtype).max), usable


def image_parts(padding: Tensor, sizes: Tensor) -> Tensor:
    """How much of a batch's width and height each image takes, (B, 1, 4): by these its boxes are those of the maps."""
    whole = sizes.new_tensor(padding.shape[1:])
    return (sizes / whole).flip(1).repeat(1, 2)[:, None]
