"""The embedded data set of captions: scenes of shapes and what is true of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from visattn.data.captions import CaptionData, CaptionSplit
from visattn.data.preprocess import Preprocess
from visattn.data.scenes import draw_scenes, tell_scenes


class ShapesCaptionsDataModule(CaptionData):
    """Scenes with five captions each, which speak of kinds, colours, sizes, textures and relations; no download.

    Args:
        image_size: side in pixels.
        train_scenes, validation_scenes, test_scenes: how many, no scene in two of them.
        mean, std: of the colours, for the model.
        min_count, max_length: keep every word, as there are few, and every caption whole.
        options: keywords of `CaptionData`.

    Raises:
        ValueError: the augmentation flips, which makes captions of left and right false.
    """

    def __init__(
        self,
        image_size: int = 64,
        *,
        train_scenes: int = 8192,
        validation_scenes: int = 1024,
        test_scenes: int = 1024,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        min_count: int = 1,
        max_length: int = 40,
        **options: Any,
    ) -> None:
        super().__init__(image_size, min_count=min_count, max_length=max_length, **options)
        if self.augmentation.get("flip"):
            raise ValueError("captions of shapes say what is left and right: flip must be 0")
        self.scenes = {"test": test_scenes, "validation": validation_scenes, "train": train_scenes}
        self.preprocess = Preprocess(image_size, mean=mean, std=std)

    def read_splits(self) -> dict[str, CaptionSplit]:
        splits, first = {}, 0
        for split, number in self.scenes.items():
            indices = range(first, first + number)
            images, _ = draw_scenes(self.seed, indices, self.image_size)
            captions = [captions for captions, _ in tell_scenes(self.seed, indices)]
            splits[split] = CaptionSplit(torch.from_numpy(images), indices, captions)
            first += number
        return splits
