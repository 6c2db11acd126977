"""A data module of few scenes with captions, in memory."""

from __future__ import annotations

import torch

from visattn.data import Preprocess
from visattn.data.captions import CaptionData, CaptionSplit
from visattn.data.scenes import draw_scene


class FewScenes(CaptionData):
    """Scenes with captions at 16 pixels: `train`, then `validation`, then `test` of them."""

    def __init__(self, train: int = 12, validation: int = 5, test: int = 4, **keywords) -> None:
        super().__init__(16, **{"batch_size": 4, "min_count": 1, "max_length": 12} | keywords)
        self.sizes = {"train": train, "validation": validation, "test": test}
        self.preprocess = Preprocess(16)

    def read_splits(self) -> dict[str, CaptionSplit]:
        splits, first = {}, 0
        for name, size in self.sizes.items():
            scenes = [draw_scene(self.seed, index, 16) for index in range(first, first + size)]
            images = torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes])
            ids = [1000 + index for index in range(first, first + size)]
            splits[name] = CaptionSplit(images, ids, [scene.captions for scene in scenes])
            first += size
        return splits


def few_scenes(**keywords) -> FewScenes:
    data = FewScenes(**keywords)
    data.setup()
    return data
