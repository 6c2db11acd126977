"""What surrounds the layers of Deformable DETR: maps of one width, predictions, proposed boxes, and first queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from visattn.heads.deformable_transformer import Pyramid, cell_centers
from visattn.heads.padded_maps import waves


class InputProjection(nn.Module):
    """A 1x1 convolution for each of the backbone's maps, and one of stride 2 for each level beyond the last.

    Args:
        channels, strides: of the backbone's maps, finest first.
        dim: channels of the results, a multiple of 32.
        levels: wanted, which have strides of 2**level pixels.

    Raises:
        ValueError: the backbone lacks a map of a level that is not beyond its last one.

    Source: Zhu et al. 2021, https://arxiv.org/abs/2010.04159, A.2.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], dim: int, levels: Sequence[int]) -> None:
        super().__init__()
        wanted = [2**level for level in levels]
        present = [stride for stride in wanted if stride in strides]
        self.indices = [strides.index(stride) for stride in present]
        if (
            wanted[: len(present)] != present
            or not present
            or (len(present) < len(wanted) and present[-1] != strides[-1])
        ):
            raise ValueError(
                f"levels {tuple(levels)} mean maps of strides {', '.join(map(str, wanted))}, and the backbone has "
                f'those of {", ".join(map(str, strides))}: choose other levels, or neck="pyramid", which makes any'
            )
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels[index], dim, kernel_size=1), nn.GroupNorm(32, dim))
            for index in self.indices
        )
        for extra in range(len(wanted) - len(present)):
            convolution = nn.Conv2d(dim if extra else channels[-1], dim, kernel_size=3, stride=2, padding=1)
            self.projections.append(nn.Sequential(convolution, nn.GroupNorm(32, dim)))
        for projection in self.projections:
            nn.init.xavier_uniform_(projection[0].weight)  # type: ignore[index]
            nn.init.zeros_(projection[0].bias)  # type: ignore[index]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, ., .) of the backbone to (B, dim, ., .) of the levels."""
        projected = [projection(maps[index]) for projection, index in zip(self.projections, self.indices, strict=False)]
        source = maps[-1]
        for projection in self.projections[len(self.indices) :]:
            source = projection(source)
            projected.append(source)
        return projected


class Predictor(nn.Module):
    """Queries (..., dim) to a logit for each class and a box.

    Args:
        dim: channels of a query.
        num_classes: logits of a query.
        from_points: boxes begin small around the points that they are found from.

    Source: Zhu et al. 2021, https://arxiv.org/abs/2010.04159, A.3; the first bias of classes, by which all objects are
        rare, Lin et al. 2017, https://arxiv.org/abs/1708.02002, section 3.3.
    """

    def __init__(self, dim: int, num_classes: int, *, from_points: bool = False) -> None:
        super().__init__()
        self.classes = nn.Linear(dim, num_classes)
        last = nn.Linear(dim, 4)
        self.box = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), last)
        nn.init.constant_(self.classes.bias, -math.log(99))  # a probability of 0.01
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        if from_points:
            nn.init.constant_(last.bias[2:], -2.0)  # an eighth of the image

    def forward(self, queries: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (..., classes) and boxes (..., 4).

        Args:
            reference: (..., 2 or 4), the points or boxes that the boxes are corrections of, as parts of the image.
        """
        correction = self.box(queries).float()  # (..., 4)
        anchor = inverse_sigmoid(reference.float())
        if anchor.shape[-1] == 2:
            anchor = functional.pad(anchor, (0, 2))
        return self.classes(queries), (correction + anchor).sigmoid()


class Proposals(NamedTuple):
    """Boxes that cells propose, the surest first.

    Attributes:
        logits: (B, Q, classes).
        boxes: (B, Q, 4), center x, center y, width and height as parts of the image.
    """

    logits: Tensor
    boxes: Tensor


class Proposer(nn.Module):
    """Every cell of the maps proposes a box around itself; the surest are taken.

    Args:
        dim: channels of a cell.
        num_classes: logits of a proposal.
        class_agnostic: the first logit tells how sure a cell is; otherwise the greatest.

    Source: Zhu et al. 2021, https://arxiv.org/abs/2010.04159, section 4.2 and A.4.
    """

    def __init__(self, dim: int, num_classes: int, *, class_agnostic: bool) -> None:
        super().__init__()
        self.class_agnostic = class_agnostic
        self.projection = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.predictor = Predictor(dim, num_classes)

    def forward(self, pyramid: Pyramid, count: int) -> Proposals:
        """The `count` surest proposals, or as many as there are cells.

        Cells of the padding, those at the very border, and those of maps too coarse for a box within the image are
        taken for empty.
        """
        anchors = anchor_boxes(pyramid)  # (B, S, 4)
        empty = pyramid.padding | ~((anchors > 0.01) & (anchors < 0.99)).all(dim=-1)
        cells = self.norm(self.projection(pyramid.cells.masked_fill(empty[..., None], 0.0)))
        logits = self.predictor.classes(cells)  # (B, S, classes)
        scores = logits[..., 0] if self.class_agnostic else logits.amax(dim=-1)
        chosen = scores.topk(min(count, scores.shape[1]), dim=1).indices[..., None]  # (B, Q, 1)
        cells, anchors = (part.gather(1, chosen.expand(-1, -1, part.shape[2])) for part in (cells, anchors))
        logits, boxes = self.predictor(cells, anchors)
        return Proposals(logits, torch.where(empty[..., None].gather(1, chosen), 1.0, boxes))


class StaticQueries(nn.Module):
    """Queries that are learned, each with a point of the image from which it looks.

    Args:
        dim: channels.
        num_queries: how many.
    """

    def __init__(self, dim: int, num_queries: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(num_queries, 2 * dim))  # position, then content
        self.reference = nn.Linear(dim, 2)
        nn.init.normal_(self.embedding)
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)

    def forward(self, cells: Tensor, boxes: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Contents (B, Q, dim), positions (B, Q, dim) and points (B, Q, 2) for the images of cells (B, S, dim)."""
        positions, contents = self.embedding.expand(cells.shape[0], -1, -1).chunk(2, dim=2)
        return contents, positions, self.reference(positions).sigmoid()


class PureQueries(nn.Module):
    """Queries whose content and position are both made of a proposed box.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(2 * dim, 2 * dim)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, cells: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, Q, 4) to contents (B, Q, dim), positions (B, Q, dim) and the boxes."""
        told = waves(boxes, self.projection.in_features // 4).flatten(2).to(cells.dtype)  # (B, Q, 2 * dim)
        positions, contents = self.norm(self.projection(told)).chunk(2, dim=2)
        return contents, positions, boxes


class MixedQueries(nn.Module):
    """Queries with a learned content, and with a proposed box that tells where they are.

    Args:
        dim: channels.
        num_queries: how many.
        num_classes: of the objects that denoising queries stand for.
    """

    def __init__(self, dim: int, num_queries: int, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(num_queries, dim))
        self.labels = nn.Embedding(num_classes, dim)
        self.mlp = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        nn.init.normal_(self.embedding)

    def forward(self, cells: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Contents (B, Q, dim), positions (B, Q, dim) and the boxes (B, Q, 4)."""
        contents = self.embedding[: boxes.shape[1]].expand(boxes.shape[0], -1, -1).to(cells.dtype)
        return contents, self.positions(boxes), boxes

    def positions(self, boxes: Tensor) -> Tensor:
        """Boxes (B, Q, 4) to (B, Q, dim)."""
        return self.mlp(waves(boxes, self.embedding.shape[1] // 2).flatten(2).to(self.embedding.dtype))


def anchor_boxes(pyramid: Pyramid) -> Tensor:
    """Around each cell a square as parts of the image, larger on coarser maps: (B, S, 4)."""
    cells = [height * width for height, width in pyramid.grids]
    sides = torch.tensor([0.05 * 2**level for level in range(len(cells))], device=pyramid.parts.device)
    sides = sides.repeat_interleave(torch.tensor(cells, device=sides.device))  # (S,)
    centers = cell_centers(pyramid)
    return torch.cat([centers, sides[:, None].expand(*centers.shape[:2], 2)], dim=2)


def inverse_sigmoid(parts: Tensor) -> Tensor:
    """The logit of numbers in [0, 1], those near 0 and 1 pulled in."""
    return parts.clamp(1e-5, 1 - 1e-5).logit()
