"""The pictures that a command works on: files and folders, read in batches, those that cannot be read set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


def picture_paths(images: list[Path]) -> list[Path]:
    """The files themselves, and all pictures below folders, sorted.

    Raises:
        ValueError: a folder holds no picture.
    """
    from visattn.data.images import image_suffixes

    paths: list[Path] = []
    for path in images:
        if not path.is_dir():
            paths.append(path)
            continue
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in image_suffixes and file.is_file())
        if not found:
            raise ValueError(f"{path}: holds no pictures ({', '.join(image_suffixes)})")
        paths += found
    return paths


def picture_batches(
    paths: list[Path],
    preprocess: Callable[[Image.Image], Tensor],
    batch_size: int,
    doing: str,
    problems: list[dict[str, str]],
) -> Iterator[tuple[list[Path], Tensor]]:
    """The readable pictures in groups, each with its preprocessed images (B, 3, H, W).

    Args:
        doing: what the progress bar on stderr says; there is none where one batch holds all.
        problems: gets {"image": path, "error": message} for each picture that cannot be read.
    """
    import torch
    from rich.console import Console
    from rich.progress import track

    from visattn.data import open_image

    waiting: list[tuple[Path, Tensor]] = []

    def batch() -> tuple[list[Path], Tensor]:
        ready = [path for path, _ in waiting], torch.stack([pixels for _, pixels in waiting])
        waiting.clear()
        return ready

    for path in track(paths, doing, console=Console(stderr=True), transient=True, disable=len(paths) <= batch_size):
        try:
            waiting.append((path, preprocess(open_image(path))))
        except (ValueError, OSError) as error:
            problems.append({"image": str(path), "error": str(error)})
        if len(waiting) == batch_size:
            yield batch()
    if waiting:
        yield batch()


def in_order_of(paths: list[Path], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with an "image" in the order in which the pictures were named."""
    order = {str(path): place for place, path in enumerate(paths)}
    return sorted(rows, key=lambda row: order[row["image"]])


def check_output(option: str, path: Path) -> None:
    """Refuses, before the work is done, a name that no picture can be written to.

    Raises:
        ValueError: the suffix is that of no format that is written.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"{option} {path}: write to a .png, .jpg or .webp file")
