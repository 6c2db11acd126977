"""Where a detector's decoder looks for each object that it finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_convert

from visattn.data.preprocess import Picture
from visattn.heads import DetectionOutput, Detections, ObjectDetector
from visattn.interpret.detection_pictures import class_color, class_name, draw_box, draw_detections
from visattn.interpret.pictures import draw_attention, enlarge, panel_figure
from visattn.interpret.record import record_attention
from visattn.interpret.relevance import evaluating, grid_of


class ObjectAttention(NamedTuple):
    """An object that was found.

    Attributes:
        label: its class, from 0.
        score: how sure it is, in [0, 1].
        box: (4,), left, top, right and bottom in pixels of the picture.
        attention: (H, W) in [0, 1], from the least to the most attended place, over the whole picture as the network
            read it, without padding.
    """

    label: int
    score: float
    box: Tensor
    attention: Tensor


def object_attention(
    model: ObjectDetector, image: Tensor | Picture, threshold: float = 0.5, *, max_objects: int = 24
) -> list[ObjectAttention]:
    """The attention to the image with which the last layer of a decoder found each object, the mean over its heads.

    Of DETR these are the weights of the softmax over all cells of the map. Of deformable heads they are those of the
    few points that a query looks at, each spread over the cells that it was interpolated from.

    Args:
        model: any detector whose head has a decoder.
        image: one picture, or a preprocessed tensor (1, 3, H, W).
        threshold: objects with greater scores are explained.
        max_objects: at most so many, the surest.

    Returns:
        The objects, the surest first; none where none are found.

    Raises:
        ValueError: the head has no decoder, there are several images, or as `ObjectDetector.detect`.

    Source: Carion et al. 2020, https://arxiv.org/abs/2005.12872, figure 6, with the mean of the heads.
    """
    looking = [name for name in attention_of_decoder(model) if name.endswith("cross_attention")]
    if not looking:
        raise ValueError(
            f"a {type(model.head).__name__} has no decoder that looks for objects, and so nothing to explain; "
            "heads that predict a set have, such as DetrHead"
        )
    with evaluating(model), torch.inference_mode(), record_attention(model, modules=looking[-1:]) as recorded:
        batch, sizes = model.prepare(image)
        if len(sizes) != 1:
            raise ValueError(f"one image is explained at a time, not {len(sizes)}")
        maps = model.features(batch.images).maps
        found = model.head.predict(maps, batch.padding, batch.sizes, max_detections=max_objects)[0].above(threshold)
        output: DetectionOutput = model.head(maps, batch.padding, batch.sizes)
    size = batch.sizes[0].tolist()
    queries = queries_of(found, output, size)
    share = recorded[looking[-1]][0].float().mean(dim=0)[queries]  # (objects, cells)
    levels = model.head.arguments.get("levels")
    grids = [grid_of(maps[-1])] if levels is None else level_grids(levels, batch.images.shape[-2:])
    attention = over_image(share, grids, batch.images.shape[-2:], size)  # (objects, height, width)
    shown = found.resized(size, sizes[0])
    return [
        ObjectAttention(int(label), float(score), box.cpu(), looked.cpu())
        for label, score, box, looked in zip(found.labels, found.scores, shown.boxes, attention, strict=True)
    ]


def attention_of_decoder(model: ObjectDetector) -> list[str]:
    """The names of the modules in the head's decoder that record what they attend to."""
    return [
        name
        for name, module in model.named_modules()
        if name.startswith("head.decoder.") and hasattr(type(module), "record")
    ]


def queries_of(found: Detections, output: DetectionOutput, size: Sequence[int]) -> Tensor:
    """Which query each detection (n,) of an image of this (height, width) comes from: the one that has its box."""
    scale = output.boxes.new_tensor([size[1], size[0]] * 2)
    boxes = box_convert(output.boxes[0], "cxcywh", "xyxy") * scale  # (queries, 4)
    return torch.cdist(found.boxes.float(), boxes.float(), p=1).argmin(dim=1)


def level_grids(levels: Sequence[int], size: Sequence[int]) -> list[tuple[int, int]]:
    """(height, width) of the maps of strides 2**level of an image of this (height, width)."""
    return [(-(-size[0] // 2**level), -(-size[1] // 2**level)) for level in levels]


def over_image(share: Tensor, grids: Sequence[tuple[int, int]], padded: Sequence[int], size: Sequence[int]) -> Tensor:
    """Shares (n, cells of all grids) to maps (n, height, width) from 0 to 1 of the image within its padding.

    A cell's share is spread over its place, so that a share of a coarse map is as much as the same of a fine one.
    """
    finest = max(grids)
    total = share.new_zeros(len(share), *finest)
    for part, (height, width) in zip(
        share.split([height * width for height, width in grids], dim=1), grids, strict=True
    ):
        cells = part.unflatten(1, (height, width))[:, None] * (height * width / (finest[0] * finest[1]))
        total += functional.interpolate(cells, finest, mode="bilinear", align_corners=False)[:, 0]
    whole = functional.interpolate(total[:, None], tuple(padded), mode="bilinear", align_corners=False)[:, 0]
    maps = whole[:, : size[0], : size[1]]
    if not len(maps):
        return maps
    lowest, highest = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - lowest) / (highest - lowest).clamp(min=1e-12)


def object_figure(
    picture: Image.Image,
    objects: Sequence[ObjectAttention],
    classes: Sequence[str] | None = None,
    title: str = "",
) -> Image.Image:
    """A picture with its objects, and for each object the same with a map of where the network looked, and its box.

    Args:
        picture: whole.
        objects: of it.
        classes: a name for each label; None shows numbers.
        title: above all.
    """
    small = enlarge(picture.convert("RGB"), 240)
    scale = small.width / picture.width
    panels = [draw_detections(small, boxes_of(objects, scale), classes)]
    for thing in objects:
        panel = draw_attention(small, thing.attention)
        draw_box(ImageDraw.Draw(panel), (thing.box * scale).tolist(), class_color(thing.label), 2)
        panels.append(panel)
    names = [f"{class_name(thing.label, classes)} {thing.score:.0%}" for thing in objects]
    return panel_figure(panels, ["", *names], title)


def boxes_of(objects: Sequence[ObjectAttention], scale: float) -> Detections:
    boxes = [thing.box * scale for thing in objects]
    return Detections(
        torch.stack(boxes) if boxes else torch.zeros(0, 4),
        torch.tensor([thing.score for thing in objects]),
        torch.tensor([thing.label for thing in objects], dtype=torch.long),
    )
