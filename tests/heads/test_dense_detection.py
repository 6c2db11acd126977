"""FCOS, RetinaNet, Faster R-CNN and Mask R-CNN on maps of any backbone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from visattn.heads.dense_detection import (
    CenteredAnchors,
    FasterRcnnHead,
    FcosHead,
    MaskRcnnHead,
    RetinaNetHead,
    image_list,
    region_pool,
)

channels, strides = (5, 7), (8, 16)
small = {"out_channels": 32, "levels": (3, 4, 5)}
two_stages = small | {"hidden": 24, "samples": 32, "proposals": 40, "anchor_size": 4.0}
makers = {
    "fcos": lambda **other: FcosHead(channels, strides, 3, **small | {"convolutions": 1} | other),
    "retinanet": lambda **other: RetinaNetHead(channels, strides, 3, **small | other),
    "faster_rcnn": lambda **other: FasterRcnnHead(channels, strides, 3, **two_stages | other),
    "mask_rcnn": lambda **other: MaskRcnnHead(
        channels, strides, 3, mask_channels=16, mask_convolutions=2, **two_stages | other
    ),
}
sizes = torch.tensor([[96, 64], [48, 80]])


def batch(height: int = 96, width: int = 96) -> tuple[tuple[Tensor, ...], Tensor]:
    """Maps of two images within their padding, and the padding."""
    generator = torch.Generator().manual_seed(0)
    padding = torch.ones(2, height, width, dtype=torch.bool)
    for place, (own_height, own_width) in enumerate(sizes.tolist()):
        padding[place, :own_height, :own_width] = False
    shapes = [
        (2, width_of, height // stride, width // stride) for width_of, stride in zip(channels, strides, strict=True)
    ]
    return tuple(torch.randn(shape, generator=generator) for shape in shapes), padding


def objects(boxes: list[list[float]], labels: list[int], size: list[int]) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[int(top) : int(bottom), int(left) : int((left + right) / 2)] = 1  # the left half of each box
    return {"boxes": torch.tensor(boxes).view(-1, 4), "labels": torch.tensor(labels, dtype=torch.long), "masks": masks}


def targets() -> list[dict[str, Tensor]]:
    return [
        objects([[8.0, 16.0, 40.0, 48.0], [20.0, 50.0, 60.0, 90.0]], [2, 0], [96, 64]),
        objects([[30.0, 10.0, 70.0, 40.0]], [1], [48, 80]),
    ]


def nothing() -> list[dict[str, Tensor]]:
    return [objects([], [], size) for size in sizes.tolist()]


@pytest.mark.parametrize("kind", makers)
@pytest.mark.parametrize("seen", [targets, nothing])
def test_every_weight_learns_whether_there_are_objects_or_not(kind, seen):
    """Several processes that train together wait for the gradients of all weights."""
    torch.manual_seed(0)
    head = makers[kind]()
    maps, padding = batch()
    parts = head.loss(maps, padding, sizes, seen())
    assert all(part.ndim == 0 and part.isfinite() for part in parts.values())
    sum(parts.values()).backward()
    missing = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert missing == []
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize("kind", makers)
def test_a_head_learns_objects_by_heart(kind):
    torch.manual_seed(0)
    head = makers[kind]()
    maps, padding = batch()
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        sum(head.loss(maps, padding, sizes, targets()).values()).backward()
        optimizer.step()
    for found, truth in zip(head.eval().predict(maps, padding, sizes), targets(), strict=True):
        sure = found.above(0.5)
        overlap = box_iou(truth["boxes"], sure.boxes)  # (objects, detections)
        best = overlap.argmax(dim=1)
        assert sorted(best.tolist()) == list(range(len(truth["labels"])))  # each is found once, and nothing else
        assert overlap.amax(dim=1).min() > 0.7
        assert sure.labels[best].tolist() == truth["labels"].tolist()
        if kind == "mask_rcnn":
            assert sure.masks.shape[1:] == truth["masks"].shape[1:]
            both = (sure.masks[best] & truth["masks"].bool()).sum(dim=(1, 2))
            either = (sure.masks[best] | truth["masks"].bool()).sum(dim=(1, 2))
            assert (both / either).min() > 0.6


@pytest.mark.parametrize("kind", makers)
def test_predictions_are_sorted_and_within_their_images(kind):
    torch.manual_seed(0)
    head = makers[kind](min_score=0.0).eval()
    maps, padding = batch()
    for found, (height, width) in zip(
        head.predict(maps, padding, sizes, max_detections=11), sizes.tolist(), strict=True
    ):
        assert 0 < len(found.scores) <= 11
        assert (found.scores.diff() <= 0).all()
        assert set(found.labels.tolist()) <= {0, 1, 2}
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor([width, height, width, height])).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert (found.masks is None) == (kind != "mask_rcnn")
        if found.masks is not None:
            assert (found.masks.dtype, found.masks.shape) == (torch.bool, (len(found.labels), height, width))


@pytest.mark.parametrize("kind", makers)
def test_a_batch_without_images_is_no_error(kind):
    head = makers[kind]()
    maps, padding = batch()
    maps, padding = tuple(level[:0] for level in maps), padding[:0]
    parts = head.loss(maps, padding, sizes[:0], [])
    assert float(sum(parts.values()).detach()) == 0
    assert head.predict(maps, padding, sizes[:0]) == []


@pytest.mark.parametrize("kind", makers)
def test_a_box_without_area_teaches_nothing(kind):
    head = makers[kind]()
    maps, padding = batch()
    flat = targets()
    flat[0] = objects([[8.0, 16.0, 40.0, 48.0], [20.0, 50.0, 60.0, 90.0], [9.0, 9.0, 9.0, 30.0]], [2, 0, 1], [96, 64])
    torch.manual_seed(0)
    expected = head.loss(maps, padding, sizes, targets())
    torch.manual_seed(0)
    torch.testing.assert_close(head.loss(maps, padding, sizes, flat), expected)


@pytest.mark.parametrize("kind", makers)
def test_losses_and_boxes_are_float32_under_autocast(kind):
    torch.manual_seed(0)
    head = makers[kind](min_score=0.0)
    maps, padding = batch()
    with torch.autocast("cpu", torch.bfloat16):
        parts = head.loss(maps, padding, sizes, targets())
        found = head.predict(maps, padding, sizes)
    assert {part.dtype for part in parts.values()} == {torch.float32}
    assert {one.boxes.dtype for one in found} == {torch.float32}
    torch.manual_seed(0)
    for name, part in makers[kind](min_score=0.0).loss(maps, padding, sizes, targets()).items():
        torch.testing.assert_close(parts[name], part, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("kind", makers)
def test_the_arguments_make_the_same_head(kind):
    head = makers[kind](nms_threshold=0.4)
    again = type(head)(channels, strides, 3, **head.arguments)
    again.load_state_dict(head.state_dict())
    assert again.arguments == head.arguments
    assert head.arguments["nms_threshold"] == 0.4
    assert not {"channels", "strides", "num_classes"} & head.arguments.keys()
    maps, padding = batch()
    for one, other in zip(head.predict(maps, padding, sizes), again.predict(maps, padding, sizes), strict=True):
        torch.testing.assert_close(one.boxes, other.boxes)


def test_the_loss_and_the_predictions_are_those_of_either_mode():
    head = makers["faster_rcnn"]()
    maps, padding = batch()
    losses = []
    for mode in (True, False):
        head.train(mode)
        torch.manual_seed(0)
        losses.append(head.loss(maps, padding, sizes, targets()))
        assert len(head.predict(maps, padding, sizes)) == 2
    torch.testing.assert_close(losses[0], losses[1])


def test_anchors_stand_in_the_middle_of_their_cells():
    anchors = CenteredAnchors([(4,), (12,)], (1.0, 4.0), (8, 16))
    maps, padding = batch()
    found, other = anchors(image_list(padding, sizes), list(maps))
    assert found is other
    assert found.shape == (2 * (12 * 12 + 6 * 6), 4)
    torch.testing.assert_close(found[0], torch.tensor([2.0, 2.0, 6.0, 6.0]))
    torch.testing.assert_close(found[1], torch.tensor([3.0, 0.0, 5.0, 8.0]))  # four times as high as wide
    torch.testing.assert_close(found[-2], torch.tensor([82.0, 82.0, 94.0, 94.0]))


@pytest.mark.parametrize("box", [[10.0, 20.0, 40.0, 44.0], [40.0, 8.0, 90.0, 90.0]])
def test_boxes_are_cut_out_of_the_maps_where_they_are(box):
    """Maps that tell their own places, of an image that ends within its padding."""
    pool = region_pool((8, 16, 32), (3, 4, 5), 7)
    cells = {}
    for level, stride in enumerate((8, 16, 32)):
        middle = (torch.arange(96 // stride) + 0.5) * stride
        cells[str(level)] = torch.stack(torch.meshgrid(middle, middle, indexing="xy"))[None]  # (1, 2, H_l, W_l)
    cut = pool(cells, [torch.tensor([box])], [(47, 91)])  # (1, 2, 7, 7)
    expected = torch.tensor([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    torch.testing.assert_close(cut[0, :, 3, 3], expected, atol=4.0, rtol=0)  # cells are roundest at the border


def test_masks_are_needed_to_learn_masks():
    maps, padding = batch()
    without = [{name: target[name] for name in ("boxes", "labels")} for target in targets()]
    with pytest.raises(ValueError, match="masks"):
        makers["mask_rcnn"]().loss(maps, padding, sizes, without)
