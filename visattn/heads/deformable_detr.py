"""Deformable DETR, with what makes it learn in few steps: boxes proposed by the maps, refined by layers, denoised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visattn.backbones.features import constructor_arguments
from visattn.heads.deformable_queries import (
    InputProjection,
    MixedQueries,
    Predictor,
    Proposals,
    Proposer,
    PureQueries,
    StaticQueries,
)
from visattn.heads.deformable_transformer import (
    DeformableDecoderLayer,
    DeformableEncoderLayer,
    Pyramid,
    reference_points,
)
from visattn.heads.denoising import DenoisingQueries, denoising_queries
from visattn.heads.detections import DetectionOutput, Detections
from visattn.heads.feature_pyramid import FeaturePyramid
from visattn.heads.matching import SetTargets, set_targets
from visattn.heads.padded_maps import image_part, map_padding, map_positions
from visattn.heads.set_loss import SetLoss, objects_per_process


class DeformableDetrHead(nn.Module):
    """The maps of any backbone to a box and a logit for each class, for every query; no duplicates to suppress.

    Cells of several maps look at each other at a few learned points; the surest of them propose boxes; queries that
    begin there look at a few points near their box and refine it from layer to layer. In training the decoder also
    restores the true objects from disturbed copies.

    The defaults are for training on a CPU, from a backbone that was trained before. The published networks are
    `neck="projection"`, `dim=256`, `levels=(3, 4, 5, 6)`, six layers each of `hidden_dim=1024`, `num_queries=300`, and
    `query_selection="static"` without or with `box_refinement`, or `query_selection="pure"` with
    `class_agnostic_proposals`.

    Args:
        channels, strides: of the backbone's maps, finest first.
        num_classes: logits of each query.
        dim: channels of a cell and of a query, a multiple of 4 and of `num_heads`.
        num_heads: attention heads.
        levels: of the maps that are read, which have strides of 2**level pixels.
        neck: "pyramid" makes these maps by `FeaturePyramid`, "projection" by `InputProjection`.
        encoder_depth, decoder_depth: layers.
        hidden_dim: channels within the MLPs.
        points: that each head looks at in each map.
        num_queries: objects that can be found in an image.
        query_selection: where queries come from: "static" ones are learned; "pure" ones are made of the boxes that the
            surest cells propose; "mixed" ones have a learned content and such a box, which in each layer tells anew
            where they are.
        box_refinement: each layer corrects the box of the one before and predicts by weights of its own; only static
            queries can be without.
        class_agnostic_proposals: the first logit of a cell tells whether there is any object; otherwise the greatest
            one does, by the object's class.
        denoising: disturbed objects for an image in training, about; only mixed queries have them.
        label_noise, box_noise: see `denoising_queries`.
        dropout: probability on residual branches and within MLPs, in training.
        classification, class_weight, l1_weight, giou_weight: see `SetLoss`.

    Attributes:
        arguments: all but the first three as plain data.

    Raises:
        ValueError: neck or query_selection is unknown, or options don't go together.

    Source: Zhu et al. 2021, https://arxiv.org/abs/2010.04159, sections 4 and A.4; mixed queries, and boxes refined with
        gradients from the next layer, Zhang et al. 2022, https://arxiv.org/abs/2203.03605 (DINO), sections 3.4 and 3.5;
        positions from boxes in each layer, Liu et al. 2022, https://arxiv.org/abs/2201.12329 (DAB-DETR), section 4.2.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        dim: int = 128,
        num_heads: int = 8,
        levels: Sequence[int] = (3, 4, 5),
        neck: str = "pyramid",
        encoder_depth: int = 1,
        decoder_depth: int = 3,
        hidden_dim: int = 512,
        points: int = 4,
        num_queries: int = 100,
        query_selection: str = "mixed",
        box_refinement: bool = True,
        class_agnostic_proposals: bool = False,
        denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        dropout: float = 0.0,
        classification: str = "focal",
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__()
        self.arguments: dict[str, Any] = {
            name: value for name, value in arguments.items() if name not in ("channels", "strides", "num_classes")
        }
        check_options(neck, query_selection, box_refinement, dim)
        self.num_classes, self.num_queries, self.query_selection = num_classes, num_queries, query_selection
        self.class_agnostic_proposals, self.box_refinement = class_agnostic_proposals, box_refinement
        self.denoising, self.label_noise, self.box_noise = denoising, label_noise, box_noise
        make_neck = FeaturePyramid if neck == "pyramid" else InputProjection
        self.neck: nn.Module = make_neck(channels, strides, dim, levels)
        self.level_embedding: nn.Parameter | None = None  # only cells that look at each other need it
        if encoder_depth:
            self.level_embedding = nn.Parameter(torch.empty(len(levels), dim))
            nn.init.normal_(self.level_embedding)
        self.dropout = nn.Dropout(dropout)
        width: dict[str, Any] = {"levels": len(levels), "points": points, "hidden_dim": hidden_dim, "dropout": dropout}
        self.encoder = nn.ModuleList(DeformableEncoderLayer(dim, num_heads, **width) for _ in range(encoder_depth))
        self.decoder = nn.ModuleList(DeformableDecoderLayer(dim, num_heads, **width) for _ in range(decoder_depth))
        static = query_selection == "static"
        self.predictors = nn.ModuleList(
            Predictor(dim, num_classes, from_points=static and index == 0)
            for index in range(decoder_depth if box_refinement else 1)
        )
        self.proposer: Proposer | None = None
        if not static:
            self.proposer = Proposer(dim, num_classes, class_agnostic=class_agnostic_proposals)
        self.queries: StaticQueries | PureQueries | MixedQueries
        if static:
            self.queries = StaticQueries(dim, num_queries)
        elif query_selection == "pure":
            self.queries = PureQueries(dim)
        else:
            self.queries = MixedQueries(dim, num_queries, num_classes)
        self.set_loss = SetLoss(
            classification=classification, class_weight=class_weight, l1_weight=l1_weight, giou_weight=giou_weight
        )

    def forward(self, maps: Sequence[Tensor], padding: Tensor, sizes: Tensor) -> DetectionOutput:
        """What each query says.

        In training `auxiliary` begins with the proposals, if there are any.

        Args:
            maps: of the backbone.
            padding: (B, H, W), bool, True where there is no image, at the right and at the bottom.
            sizes: (B, 2), long, not read: the padding tells them.

        Returns:
            Logits (B, queries, num_classes), boxes (B, queries, 4). There are `num_queries`, or as many as the maps
            have cells if those are fewer.
        """
        proposals, layers = self.decode(self.encode(maps, padding), None)
        earlier = layers[:-1] if proposals is None else [proposals, *layers[:-1]]
        return DetectionOutput(*layers[-1], tuple(earlier) if self.training else ())

    def loss(
        self, maps: Sequence[Tensor], padding: Tensor, sizes: Tensor, targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """The parts of the loss, scalars whose sum is trained; in evaluation those of the last layer alone.

        Args:
            targets: of each image "boxes" (n, 4), left, top, right and bottom in pixels, and "labels" (n,).
        """
        objects = set_targets(targets, sizes)
        noisy = None
        if self.training and isinstance(self.queries, MixedQueries) and self.denoising:
            noisy = denoising_queries(
                objects,
                self.num_classes,
                queries=self.denoising,
                label_noise=self.label_noise,
                box_noise=self.box_noise,
            )
        proposals, layers = self.decode(self.encode(maps, padding), noisy)
        known = 0 if noisy is None else noisy.labels.shape[1]
        found = [(logits[:, known:], boxes[:, known:]) for logits, boxes in layers]
        if not self.training:
            return self.set_loss(DetectionOutput(*found[-1]), objects)
        losses = {}
        if proposals is not None and self.class_agnostic_proposals:
            anything = objects._replace(labels=torch.zeros_like(objects.labels))
            proposed = DetectionOutput(proposals[0][..., :1], proposals[1])
            losses["proposals"] = torch.stack(list(self.set_loss(proposed, anything).values())).sum()
        elif proposals is not None:
            found.insert(0, proposals)
        losses |= self.set_loss(DetectionOutput(*found[-1], tuple(found[:-1])), objects)
        if isinstance(self.queries, MixedQueries) and self.denoising:
            number = objects_per_process(objects)  # asked of all processes, also where one has no objects
            losses["denoising"] = self.denoising_loss(layers, noisy, objects, number)
        return losses

    def denoising_loss(
        self,
        layers: Sequence[tuple[Tensor, Tensor]],
        noisy: DenoisingQueries | None,
        objects: SetTargets,
        number: Tensor,
    ) -> Tensor:
        """How badly the layers restore the disturbed objects, which are the first queries.

        Args:
            number: (), of objects, what the sums are divided by for each group.
        """
        if noisy is None:  # the process waits for a gradient of each parameter where several train together
            return 0.0 * self.queries.get_parameter("labels.weight").sum()
        known = noisy.labels.shape[1]
        logits = torch.stack([logits[:, :known] for logits, _ in layers])  # (layers, B, D, classes)
        boxes = torch.stack([boxes[:, :known] for _, boxes in layers])
        assignment = noisy.assignment.expand(len(layers), -1, -1)
        return self.set_loss.assigned(logits, boxes, assignment, objects, number * noisy.groups).sum()

    @torch.no_grad()
    def predict(
        self, maps: Sequence[Tensor], padding: Tensor, sizes: Tensor, *, max_detections: int = 100
    ) -> list[Detections]:
        """The surest classes of all queries, in pixels of the batch's images."""
        return self(maps, padding, sizes).detections(sizes, max_detections)

    def encode(self, maps: Sequence[Tensor], padding: Tensor) -> Pyramid:
        """The backbone's maps as cells of one width that have looked at each other."""
        projected = self.neck(maps)
        grids = tuple((int(one.shape[2]), int(one.shape[3])) for one in projected)
        beyond = [map_padding(padding, grid) for grid in grids]
        cells = torch.cat([one.flatten(2).transpose(1, 2) for one in projected], dim=1)  # (B, S, dim)
        pyramid = Pyramid(
            self.dropout(cells),
            torch.cat([one.flatten(1) for one in beyond], dim=1),
            torch.stack([image_part(one) for one in beyond], dim=1),
            grids,
        )
        if self.level_embedding is None:
            return pyramid
        places = [map_positions(one, cells.shape[2]) for one in beyond]  # (B, height * width, dim) each
        positions = torch.cat([one + level for one, level in zip(places, self.level_embedding, strict=True)], dim=1)
        reference = reference_points(pyramid)  # (B, S, levels, 2)
        for layer in self.encoder:
            pyramid = layer(pyramid, positions.to(cells.dtype), reference)
        return pyramid

    def decode(
        self, pyramid: Pyramid, noisy: DenoisingQueries | None
    ) -> tuple[Proposals | None, list[tuple[Tensor, Tensor]]]:
        """What the surest cells propose, and logits and boxes of each layer; denoising queries are the first ones."""
        proposals = self.proposer(pyramid, self.num_queries) if self.proposer is not None else None
        boxes = None if proposals is None else proposals.boxes.detach()
        contents, positions, reference = self.queries(pyramid.cells, boxes)  # (B, Q, dim) twice, (B, Q, 2 or 4)
        mask = None
        if noisy is not None and isinstance(self.queries, MixedQueries):
            mask = noisy.mask(contents.shape[1])
            contents = torch.cat([self.queries.labels(noisy.labels).to(contents), contents], dim=1)
            reference = torch.cat([noisy.boxes.to(reference), reference], dim=1)
        layers = []
        for index, layer in enumerate(self.decoder):
            if isinstance(self.queries, MixedQueries):
                positions = self.queries.positions(reference.detach())
            contents = layer(contents, positions, reference.detach(), pyramid, mask)
            logits, boxes = self.predictors[min(index, len(self.predictors) - 1)](contents, reference)
            layers.append((logits, boxes))
            reference = boxes if self.box_refinement else reference
        return proposals, layers


def check_options(neck: str, query_selection: str, box_refinement: bool, dim: int) -> None:
    """Refuses what doesn't go together.

    Raises:
        ValueError: as the class says.
    """
    if neck not in ("pyramid", "projection"):
        raise ValueError(f"neck {neck!r} is unknown; choose pyramid or projection")
    if query_selection not in ("static", "pure", "mixed"):
        raise ValueError(f"query_selection {query_selection!r} is unknown; choose static, pure or mixed")
    if not box_refinement and query_selection != "static":
        raise ValueError(f'{query_selection} queries begin with boxes to refine: say box_refinement=True, or "static"')
    if dim % 4:
        raise ValueError(f"dim {dim} must be a multiple of 4: sine and cosine of rows and of columns")
