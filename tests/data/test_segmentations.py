import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

from visattn.data.detection_files import DetectionFileError
from visattn.data.json_fields import JsonFields
from visattn.data.segmentations import compressed, decoded

fields = JsonFields(DetectionFileError, "objects")
height, width = 37, 53
rng = np.random.default_rng(0)


def reference(segmentation):
    """What pycocotools makes of it."""
    coco = COCO()
    coco.imgs = {1: {"height": height, "width": width}}
    return coco.annToMask({"image_id": 1, "segmentation": segmentation})


def run_lengths_of(mask):
    """Uncompressed, column by column, beginning with the pixels that are 0."""
    pixels = np.concatenate([[0], mask.flatten(order="F"), [2]])
    changes = np.flatnonzero(np.diff(pixels))
    return {"size": [height, width], "counts": np.diff(changes, prepend=0).tolist()}


def encoded(mask):
    found = run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


noise = (rng.random((height, width)) < 0.4).astype(np.uint8)
blob = np.zeros((height, width), dtype=np.uint8)
blob[5:20, 30:53] = 1
masks = [noise, blob, 1 - blob, 1 - noise, np.zeros_like(blob), np.ones_like(blob)]
polygons = [
    [[3, 4, 40.5, 6.25, 20, 30]],
    [[3, 4, 40.5, 6.25, 20, 30], [30, 20, 52, 20, 52, 36, 31, 35.5]],
    [[-5, -9, 60, 3, 20, 50]],
    [[7, 7, 7, 7, 7, 7]],
    [[0, 0, 53, 0, 53, 37, 0, 37]],
]


@pytest.mark.parametrize("segmentation", polygons)
def test_polygons_become_the_masks_of_pycocotools(segmentation):
    found = compressed(fields, "x", {"segmentation": segmentation}, height, width)
    assert np.array_equal(decoded([found], height, width)[0].numpy(), reference(segmentation))


@pytest.mark.parametrize("mask", masks)
@pytest.mark.parametrize("form", [run_lengths_of, encoded])
def test_run_lengths_of_both_kinds_become_the_mask(mask, form):
    found = compressed(fields, "x", {"segmentation": form(mask)}, height, width)
    assert np.array_equal(decoded([found], height, width)[0].numpy(), mask)


def test_many_masks_are_decoded_in_order_and_none_too():
    found = [compressed(fields, "x", {"segmentation": encoded(mask)}, height, width) for mask in masks]
    assert torch.equal(decoded(found, height, width), torch.from_numpy(np.stack(masks)))
    assert decoded([], height, width).shape == (0, height, width)


size, area = [height, width], height * width
wrong = [
    ({}, '"segmentation" is missing'),
    ({"segmentation": None}, "list of polygons or an object with run lengths, found null"),
    ({"segmentation": []}, "holds no polygon"),
    ({"segmentation": [3, 4, 5, 6, 7, 8]}, "list of numbers, found a number"),
    ({"segmentation": [[1, 2, 3, 4]]}, "polygon of 4 numbers"),
    ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "polygon of 7 numbers"),
    ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, "found a string in it"),
    ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "cannot be used: nan"),
    ({"segmentation": [[1, 2, 3, 4, 5, 1e9]]}, "far outside of the image"),
    ({"segmentation": {"counts": [area]}}, '"size" is missing'),
    ({"segmentation": {"size": size}}, '"counts" is missing'),
    ({"segmentation": {"size": [width, height], "counts": [area]}}, r"is of size \[53, 37\], the image of \[37, 53\]"),
    ({"segmentation": {"size": size, "counts": [area - 1]}}, "sum up to 37 . 53 pixels"),
    ({"segmentation": {"size": size, "counts": [-1, area + 1]}}, "whole numbers that sum up"),
    ({"segmentation": {"size": size, "counts": [area / 1]}}, "whole numbers that sum up"),
    ({"segmentation": {"size": size, "counts": 7}}, "list of numbers, found a number"),
    ({"segmentation": {"size": size, "counts": ""}}, "is empty or has characters"),
    ({"segmentation": {"size": size, "counts": "a b"}}, "has characters that no run lengths have"),
    ({"segmentation": {"size": size, "counts": "é\0"}}, "has characters that no run lengths have"),
    ({"segmentation": {"size": size, "counts": encoded(blob)["counts"][:-1]}}, "ends within a number|lengths that sum"),
    (
        {"segmentation": {"size": size, "counts": encoded(noise)["counts"][:-4]}},
        "ends within a number|lengths that sum",
    ),
    ({"segmentation": {"size": size, "counts": "PPPPPPPPPPPP0"}}, "number that is too large"),
    ({"segmentation": {"size": size, "counts": "`"}}, "ends within a number"),
]


@pytest.mark.parametrize(("entry", "message"), wrong)
def test_wrong_segmentations_are_errors(entry, message):
    with pytest.raises(DetectionFileError, match=message):
        compressed(fields, "annotation 5", entry, height, width)


def test_compressed_run_lengths_that_are_cut_off_or_damaged_never_reach_the_decoder():
    whole = encoded(noise)["counts"]
    accepted = 0
    for place in range(len(whole)):
        for damaged in (whole[:place], whole[:place] + chr(48 + rng.integers(64)) + whole[place + 1 :]):
            try:
                found = compressed(fields, "x", {"segmentation": {"size": size, "counts": damaged}}, height, width)
            except DetectionFileError:
                continue
            accepted += 1
            assert decoded([found], height, width).shape == (1, height, width)
    assert accepted < len(whole) // 2
