"""A folder as CIFAR-10's in class folders, small, and of classes that a network learns in a second."""

from pathlib import Path

import numpy as np
from PIL import Image

classes = ("blue", "green", "red")


def write_images(folder: Path, train: int = 30, test: int = 12) -> Path:
    """So many 32x32 images of each class, noise around its colour."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name, color in zip(classes, ((60, 60, 180), (60, 180, 60), (180, 60, 60)), strict=True):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(generator.normal(color, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder
