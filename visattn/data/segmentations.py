"""Masks as COCO writes them, polygons and run lengths, checked and brought into one form when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as run_lengths
from torch import Tensor

from visattn.data.json_fields import JsonFields, kind

_shortest_polygon = 6  # numbers: three corners


def compressed(fields: JsonFields, where: str | Path, entry: Any, height: int, width: int) -> bytes:
    """The "segmentation" of an annotation as compressed run lengths of a mask (height, width).

    Its pixels are those of `COCO.annToMask`. Everything is checked before pycocotools sees it, which trusts what it is
    given and may read beyond it.

    Raises:
        JsonFields.error: it is missing or of none of the three forms, a polygon has less than three corners or one far
            from the image, or the run lengths don't fill the mask.

    Source: https://cocodataset.org/#format-data; pycocotools' `COCO.annToRLE`.
    """
    value = fields.field(where, entry, "segmentation")
    if isinstance(value, list):
        return _of_polygons(fields, where, value, height, width)
    if not isinstance(value, dict):
        raise fields.error(
            f'{where}: "segmentation" must be a list of polygons or an object with run lengths, found {kind(value)}'
        )
    within = f'{where}: "segmentation"'
    if fields.numbers(within, "size", fields.field(within, value, "size"), 2) != [height, width]:
        raise fields.error(f'{where}: "segmentation" is of size {value["size"]}, the image of {[height, width]}')
    counts = fields.field(within, value, "counts")
    if isinstance(counts, str):
        return _of_compressed(fields, within, counts, height * width)
    lengths = fields.numbers(within, "counts", counts)
    if any(type(length) is not int or length < 0 for length in lengths) or sum(lengths) != height * width:
        raise fields.error(f'{within}: "counts" must be whole numbers that sum up to {height} * {width} pixels')
    return run_lengths.frPyObjects({"size": [height, width], "counts": lengths}, height, width)["counts"]


def decoded(masks: Sequence[bytes], height: int, width: int) -> Tensor:
    """Compressed run lengths to masks (n, height, width), uint8, 1 at the objects."""
    if not masks:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    pixels = run_lengths.decode([{"size": [height, width], "counts": counts} for counts in masks])
    return torch.from_numpy(pixels).permute(2, 0, 1)  # (n, height, width) out of (height, width, n)


def _of_polygons(fields: JsonFields, where: str | Path, polygons: list, height: int, width: int) -> bytes:
    if not polygons:
        raise fields.error(f'{where}: "segmentation" holds no polygon')
    for polygon in polygons:
        corners = fields.numbers(where, "segmentation", polygon)
        if len(corners) < _shortest_polygon or len(corners) % 2:
            raise fields.error(
                f'{where}: "segmentation" holds a polygon of {len(corners)} numbers; an even number from '
                f"{_shortest_polygon} on is needed, x and y of each corner"
            )
        # The work of drawing a side grows with its length, whether or not it lies within the image.
        for side, places in ((width, corners[0::2]), (height, corners[1::2])):
            if min(places) < -side or max(places) > 2 * side:
                raise fields.error(
                    f'{where}: "segmentation" has a corner at {min(places):g} to {max(places):g}, far outside of the '
                    f"image ({width}x{height})"
                )
    return run_lengths.merge(run_lengths.frPyObjects(polygons, height, width))["counts"]


def _of_compressed(fields: JsonFields, within: str, counts: str, pixels: int) -> bytes:
    """Six bits a character, the sixth of which says that a number goes on; from the third on, each is a difference to
    the number two before (pycocotools' `rleToString`)."""
    codes = np.frombuffer(counts.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64) - 48
    problem = None
    if not len(codes) or codes.min() < 0 or codes.max() > 63:
        problem = "is empty or has characters that no run lengths have"
    elif codes[-1] & 32:
        problem = "ends within a number"
    else:
        ends = np.flatnonzero(codes & 32 == 0)
        starts = np.concatenate([[0], ends[:-1] + 1])
        digits = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)  # the place of each within its number
        if digits.max() > 6:
            problem = "holds a number that is too large"
        else:
            numbers = np.add.reduceat((codes & 31) << (5 * digits), starts)
            numbers -= np.where(codes[ends] & 16, 1 << (5 * (digits[ends] + 1)), 0)  # the sign
            for parity in (
                1,
                2,
            ):  # counts 1, 3, 5, ... and 2, 4, 6, ... are sums of differences; the first stands alone
                numbers[parity::2] = np.cumsum(numbers[parity::2])
            if numbers.min() < 0 or numbers.sum() != pixels:
                problem = f"has lengths below 0, or lengths that sum up to {numbers.sum()} rather than {pixels} pixels"
    if problem is not None:
        raise fields.error(f'{within}: "counts" {problem}')
    return counts.encode("ascii")
