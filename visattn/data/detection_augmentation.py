"""Augmentation of pictures with objects, each from (seed, epoch, index) alone, so runs can be resumed exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import functional

from visattn.data.annotated_pictures import AnnotatedPicture, AnnotatedPictures, Window, rewrap
from visattn.data.draws import uniform_draws

_trials = 24  # windows that are drawn for one that keeps an object
_narrowest = 0.5  # of a window's aspect ratio to its picture's


class DetectionAugmentation:
    """Crop, scale jitter, flip, mosaic, copy-paste and colours, boxes and masks along with the pixels. Zero leaves out.

    Objects leave with what is cropped or covered: see `min_visible`. A part of a picture is shown within the height and
    width that the whole picture would have, so that batches don't grow.

    Args:
        seed: of all draws.
        flip, vertical_flip: probability that left and right are exchanged, and above and below.
        scale: (lowest, highest) factor of the size that things are shown in, drawn evenly in its logarithm; above 1 a
            part of the picture is shown, below 1 a smaller picture.
        crop: probability that a random part of the picture is shown in the place of all of it.
        crop_side: of each of its sides, the least share of the picture's.
        min_visible: the least share of an object's box, or of its mask where others cover it, that must remain for it
            to be looked for. A window must keep one object, if there is any.
        photometric: probability that brightness, contrast, saturation and hue change, as in SSD (Liu et al. 2016,
            https://arxiv.org/abs/1512.02325).
        mosaic: probability that four pictures share the place of one (Bochkovskiy et al. 2020,
            https://arxiv.org/abs/2004.10934).
        copy_paste: probability that objects of another picture lie over this one, by their masks (Ghiasi et al. 2021,
            https://arxiv.org/abs/2012.07177).

    Raises:
        ValueError: a probability or another number is out of its range.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        flip: float = 0.0,
        vertical_flip: float = 0.0,
        scale: Sequence[float] = (1.0, 1.0),
        crop: float = 0.0,
        crop_side: float = 0.3,
        min_visible: float = 0.3,
        photometric: float = 0.0,
        mosaic: float = 0.0,
        copy_paste: float = 0.0,
    ) -> None:
        probabilities = {
            "flip": flip,
            "vertical_flip": vertical_flip,
            "crop": crop,
            "min_visible": min_visible,
            "photometric": photometric,
            "mosaic": mosaic,
            "copy_paste": copy_paste,
        }
        for name, probability in probabilities.items():
            if not 0 <= probability <= 1:
                raise ValueError(f"{name} {probability} must lie between 0 and 1")
        if not 0 < crop_side <= 1:
            raise ValueError(f"crop_side {crop_side} must be above 0, and 1 at most")
        lowest, highest = scale if len(scale) == 2 else (0.0, 0.0)
        if not 0 < lowest <= highest:
            raise ValueError(f"scale {tuple(scale)} must be the lowest and the highest factor, both above 0")
        self.seed, self.scale = seed, (float(lowest), float(highest))
        self.flip, self.vertical_flip = flip, vertical_flip
        self.crop, self.crop_side, self.min_visible = crop, crop_side, min_visible
        self.photometric, self.mosaic, self.copy_paste = photometric, mosaic, copy_paste

    @property
    def shows_parts(self) -> bool:
        """Whether a picture is looked at more closely than as a whole."""
        return self.crop > 0 or self.scale[1] > 1 or self.mosaic > 0

    def __call__(self, pictures: AnnotatedPictures, epoch: int, index: int) -> AnnotatedPicture:
        """What is shown of a picture, and with it perhaps of others, in an epoch."""
        draws = uniform_draws((self.seed, epoch), [index], 21)[0]  # in [0, 1)
        others = (draws[:4] * len(pictures)).astype(int).tolist()
        if draws[4] < self.mosaic:
            shown = self.tiles(pictures, epoch, index, [index, *others[:3]], draws[5:7])
        else:
            shown = self.part(pictures, index, uniform_draws((self.seed, epoch, 4), [index], 4 * _trials + 2)[0])
        if draws[7] < self.copy_paste:
            drawn = uniform_draws((self.seed, epoch, 5), [index], 4 * _trials + 2)[0]
            shown = paste(shown, self.part(pictures, others[3], drawn), drawn, self.min_visible)
        if draws[8] < self.flip:
            shown = flipped(shown)
        if draws[20] < self.vertical_flip:
            shown = flipped(shown, functional.vertical_flip)
        if draws[9] < self.photometric:
            shown = shown._replace(pixels=distort(shown.pixels, draws[10:20]))
        return shown

    def part(self, pictures: AnnotatedPictures, index: int, draws: np.ndarray) -> AnnotatedPicture:
        """A picture cropped and scaled."""
        pixels = pictures.pixels(index)
        height, width = pixels.shape[1:]
        lowest, highest = self.scale
        factor = lowest * (highest / lowest) ** draws[0]
        windows = draws[2:].reshape(-1, 4)
        shares = np.ones((len(windows), 2))
        if draws[1] < self.crop:
            shares -= (1 - self.crop_side) * windows[:, :2]
            ratio = shares[:, 0] / shares[:, 1]
            fitting = (ratio >= _narrowest) & (ratio <= 1 / _narrowest)
            windows, shares = windows[fitting], shares[fitting]
        sides = np.maximum(np.rint(shares / max(factor, 1) * (height, width)), 1)  # (trials, 2)
        window = self.keeping(pictures, index, (height, width), sides, windows[:, 2:])
        size = np.array(pictures.preprocess.resized(height, width)) * min(factor, 1)
        if pictures.preprocess.fit == "within":  # also a window keeps its aspect ratio
            shown = np.array([window.height / height, window.width / width])
            size = size * (shown / shown.max())
        return pictures.view(index, pixels, window, np.maximum(np.rint(size), 1).astype(int).tolist(), self.min_visible)

    def keeping(
        self,
        pictures: AnnotatedPictures,
        index: int,
        stored: tuple[int, int],
        sides: np.ndarray,
        places: np.ndarray,
    ) -> Window:
        """The first of some windows that keeps an object, or else the whole picture.

        Args:
            stored: (height, width) of the picture.
            sides: (trials, 2), height and width of each window in whole pixels.
            places: (trials, 2) in [0, 1), where it lies from top to bottom and from left to right.
        """
        start = np.floor(places * (np.array(stored) - sides + 1))  # (trials, 2)
        _, boxes = pictures.boxes(index)
        good = np.ones(len(sides), dtype=bool)
        if len(boxes):
            corners = functional.resize(boxes, [*stored]).as_subclass(Tensor).double().numpy()  # (n, 4)
            least = np.maximum(corners[:, :2], start[:, None, ::-1])  # (trials, n, 2), x and y
            most = np.minimum(corners[:, 2:], (start + sides)[:, None, ::-1])
            seen = (most - least).clip(0).prod(2) / (corners[:, 2:] - corners[:, :2]).prod(1)  # (trials, n)
            good = ((seen > 0) & (seen >= self.min_visible)).any(1)
        for top, left, height, width in np.concatenate([start, sides], axis=1)[good][:1].astype(int).tolist():
            return Window(top, left, height, width)
        return Window(0, 0, *stored)

    def tiles(
        self, pictures: AnnotatedPictures, epoch: int, index: int, indices: Sequence[int], middle: np.ndarray
    ) -> AnnotatedPicture:
        """Four pictures around a point, in a frame of the size that the first would have."""
        height, width = pictures.preprocess.resized(*pictures.pixels(indices[0]).shape[1:])
        down, across = (round(side * (0.3 + 0.4 * draw)) for side, draw in zip((height, width), middle, strict=True))
        frame = torch.empty(3, height, width, dtype=torch.uint8)
        corners = (
            (0, down, 0, across),
            (0, down, across, width),
            (down, height, 0, across),
            (down, height, across, width),
        )
        parts, boxes, masks = [], [], []
        for number, (picture, (top, bottom, left, right)) in enumerate(zip(indices, corners, strict=True)):
            if bottom == top or right == left:
                continue
            draws = uniform_draws((self.seed, epoch, 6 + number), [index], 3 * _trials)[0]
            part = self.tile(pictures, picture, (bottom - top, right - left), draws.reshape(-1, 3))
            frame[:, top:bottom, left:right] = part.pixels
            parts.append(part)
            boxes.append(part.boxes.as_subclass(Tensor) + torch.tensor([left, top, left, top]))
            if part.masks is not None:
                masks.append(functional.pad(part.masks, [left, top, width - right, height - bottom]))
        return AnnotatedPicture(
            frame,
            rewrap(parts[0]._replace(pixels=frame), torch.cat(boxes)),
            torch.cat([part.objects for part in parts]),
            torch.cat([part.areas for part in parts]),
            torch.cat(masks) if masks else None,
        )

    def tile(
        self, pictures: AnnotatedPictures, index: int, size: tuple[int, int], draws: np.ndarray
    ) -> AnnotatedPicture:
        """A part of a picture that fills (height, width) pixels, its aspect ratio kept, half as wide as it can be or
        wider."""
        pixels = pictures.pixels(index)
        stored = (pixels.shape[1], pixels.shape[2])
        widest = min(stored[0] / size[0], stored[1] / size[1]) * np.array(size)  # (2,)
        sides = np.maximum(np.rint((1 - 0.5 * draws[:, :1]) * widest), 1)  # (trials, 2)
        window = self.keeping(pictures, index, stored, sides, draws[:, 1:])
        return pictures.view(index, pixels, window, size, self.min_visible)


def flipped(picture: AnnotatedPicture, flip: Callable = functional.horizontal_flip) -> AnnotatedPicture:
    """Left is right, or as torchvision's `flip` does it."""
    return picture._replace(
        pixels=flip(picture.pixels),
        boxes=flip(picture.boxes),
        masks=None if picture.masks is None else flip(picture.masks),
    )


def paste(below: AnnotatedPicture, above: AnnotatedPicture, draws: np.ndarray, min_visible: float) -> AnnotatedPicture:
    """About half of the objects of one picture over another, which keeps its size; its objects lose what is covered.

    Raises:
        ValueError: there are no masks.
    """
    if below.masks is None or above.masks is None:
        raise ValueError("copy_paste needs masks: give the data masks=true, or set copy_paste to 0")
    height, width = below.pixels.shape[1:]
    chosen = uniform_draws((int(draws[0] * 2**53),), range(len(above.objects)), 1)[:, 0] < 0.5
    above = above.keep(torch.from_numpy(chosen))
    assert above.masks is not None
    room = (0, 0, height, width)  # crop pads what is smaller
    over, masks = functional.crop(above.pixels, *room), functional.crop(above.masks, *room)
    above = cut_to_masks(above._replace(pixels=over, masks=masks), above, min_visible)
    assert above.masks is not None
    covered = above.masks.any(0).bool()  # (height, width)
    pixels = torch.where(covered, above.pixels, below.pixels)
    seen = below._replace(pixels=pixels, masks=below.masks * ~covered)
    below = cut_to_masks(seen, below, min_visible)
    assert below.masks is not None
    return AnnotatedPicture(
        pixels,
        rewrap(below, torch.cat([below.boxes, above.boxes])),
        torch.cat([below.objects, above.objects]),
        torch.cat([below.areas, above.areas]),
        torch.cat([below.masks, above.masks]),
    )


def cut_to_masks(now: AnnotatedPicture, before: AnnotatedPicture, min_visible: float) -> AnnotatedPicture:
    """Objects whose masks lost pixels have smaller boxes, or are left out."""
    assert now.masks is not None
    assert before.masks is not None
    shares = now.masks.flatten(1).sum(1) / before.masks.flatten(1).sum(1)  # (n,)
    kept = (shares > 0) & (shares >= min_visible)
    changed = shares[kept] < 1
    now = now._replace(areas=now.areas * shares).keep(kept)
    boxes = now.boxes.as_subclass(Tensor).clone()
    assert now.masks is not None
    if changed.any():
        boxes[changed] = masks_to_boxes(now.masks[changed]) + torch.tensor([0, 0, 1, 1])  # to the far side of the last
    return now._replace(boxes=rewrap(now, boxes))


def distort(pixels: Tensor, draws: np.ndarray) -> Tensor:
    """Other colours (3, height, width), uint8, by ten draws in [0, 1): half of the changes are made.

    Source: Liu et al. 2016, section 2.2; the strengths are those of torchvision's `RandomPhotometricDistort`.
    """
    brightness, contrast, saturation, hue = (draw < 0.5 for draw in draws[:4])
    if brightness:
        pixels = functional.adjust_brightness(pixels, 0.875 + 0.25 * draws[4])
    if contrast and draws[5] < 0.5:
        pixels = functional.adjust_contrast(pixels, 0.5 + draws[6])
    if saturation:
        pixels = functional.adjust_saturation(pixels, 0.5 + draws[7])
    if hue:
        pixels = functional.adjust_hue(pixels, 0.1 * draws[8] - 0.05)
    if contrast and draws[5] >= 0.5:
        pixels = functional.adjust_contrast(pixels, 0.5 + draws[6])
    return pixels
