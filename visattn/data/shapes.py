"""The embedded data set: scenes of shapes whose label is a relation, drawn when they are needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from visattn.data.classification import ImageClassificationData
from visattn.data.preprocess import Preprocess
from visattn.data.scenes import draw_scenes, scene_classes


class ShapesDataModule(ImageClassificationData):
    """Where is red, seen from blue, or green, seen from yellow? Eight classes, whatever the shapes are; no download.

    Args:
        image_size: side in pixels.
        batch_size: images per process and step.
        num_workers: processes that make batches; 0 makes them in the training process.
        seed: of the scenes and their order.
        train_scenes, validation_scenes, test_scenes: how many, no scene in two of them.
        mean, std: of the colours, for the model.
        augmentation: keywords of `visattn.data.Augmentation`; no flips, which would change the label.
    """

    classes = scene_classes

    def __init__(
        self,
        image_size: int = 32,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        train_scenes: int = 8192,
        validation_scenes: int = 1024,
        test_scenes: int = 2048,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        augmentation: dict | None = None,
    ) -> None:
        super().__init__(image_size, batch_size, num_workers, seed, augmentation)
        self.scenes = {"test": test_scenes, "validation": validation_scenes, "train": train_scenes}
        self.preprocess = Preprocess(image_size, mean=mean, std=std)

    def setup(self, stage: str | None = None) -> None:
        first = 0
        for split, number in self.scenes.items():
            if split not in self.splits:
                images, labels = draw_scenes(self.seed, range(first, first + number), self.image_size)
                self.splits[split] = torch.from_numpy(images), torch.from_numpy(labels).long()
            first += number
