"""What a frozen backbone sees in the images of a data set, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from visattn.backbones import Backbone
from visattn.data.stored_images import StoredImages
from visattn.files import atomic_path, cache_folder

_version = 1  # of how features are computed and stored; part of every key


def cached_features(
    backbone: Backbone,
    images: StoredImages,
    views: int = 1,
    folder: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    num_workers: int = 0,
    title: str = "features",
) -> NDArray[np.float16]:
    """The backbone's tokens of all images, from a file that is computed if it doesn't exist yet.

    The file is found by the backbone with its weights, the images and how they are prepared, the views, and the
    precision if this is called within `torch.autocast`. Its rows are read from disk when they are asked for.

    Args:
        backbone: in evaluation mode, on any device.
        images: what a data set stores.
        views: 1 takes each image as it is, 2 also its mirror image.
        folder: of the file; None is a folder in the user's cache.
        device: computes them.
        batch_size: images at a time.
        num_workers: processes that read images; 0 reads them in this one.
        title: of the progress bar.

    Returns:
        (views, images, N, C) float16, for `CaptionData.use_features`.

    Raises:
        ValueError: there are other than 1 or 2 views, no images, or features beyond the range of float16.
        OSError: the folder cannot be written.
    """
    if views not in (1, 2):
        raise ValueError(f"feature_views {views} is neither 1 (the images) nor 2 (their mirror images too)")
    if not len(images):
        raise ValueError(f"{title}: there are no images")
    name = f"{type(backbone).__name__}-{key(backbone, images, views, precision(device))}.npy"
    path = Path(folder or cache_folder() / "features") / name
    stored = read(path)
    if stored is None:
        backbone.to(device)
        batches = DataLoader(Batches(images, batch_size), batch_size=None, num_workers=num_workers)
        with atomic_path(path) as temporary:
            compute(backbone, batches, (views, len(images)), temporary, title)
        stored = np.load(path, mmap_mode="r")
    return stored


def read(path: Path) -> NDArray[np.float16] | None:
    """The features in a file; None if it doesn't exist or isn't whole."""
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None


def precision(device: torch.device | str) -> str | None:
    """The type of numbers that autocast computes in on this device; None if it is off."""
    kind = torch.device(device).type
    return str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None


def key(backbone: Backbone, images: StoredImages, views: int, precision: str | None = None) -> str:
    """A hash of all that features depend on."""
    settings = [_version, type(backbone).__name__, backbone.arguments, images.preprocess.arguments, views, precision]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(raw_bytes(tensor))
    if isinstance(images.images, Tensor):
        digest.update(f"{tuple(images.images.shape)}".encode())
        digest.update(raw_bytes(images.images))
    else:
        for path in images.images:
            status = path.stat()
            digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def raw_bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


class Batches(Dataset):
    """Images in order, as a backbone reads them: (batch_size, 3, H, W) but for the last."""

    def __init__(self, images: StoredImages, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, number: int) -> Tensor:
        first = number * self.batch_size
        return self.images.normalize(self.images.pixels(range(first, min(first + self.batch_size, len(self.images)))))


@torch.no_grad()
def compute(backbone: Backbone, batches: DataLoader, size: tuple[int, int], path: Path, title: str) -> None:
    """Writes the tokens of `size` (views, images) into a file."""
    device = next(backbone.parameters()).device
    stored: np.memmap | None = None
    done = 0
    with Progress() as progress:
        bar = progress.add_task(title, total=size[1])
        for batch in batches:
            seen = batch.to(device)  # (B, 3, H, W)
            for view in range(size[0]):
                tokens = backbone(seen.flip(3) if view else seen).tokens.half()  # (B, N, C)
                if not tokens.isfinite().all():
                    raise ValueError(f"tokens of {type(backbone).__name__} exceed float16: leave out cache_features")
                if stored is None:
                    shape = (*size, *tokens.shape[1:])
                    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
                stored[view, done : done + len(tokens)] = tokens.cpu().numpy()
            done += len(batch)
            progress.update(bar, completed=done)
    assert stored is not None
    stored.flush()
