"""The pictures that a command works on: files and folders, read in batches, those that cannot be read set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Read = TypeVar("Read")


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
        doing, problems: see `read_batches`.
    """
    import torch

    from visattn.data import open_image

    for batch, images in read_batches(paths, lambda path: preprocess(open_image(path)), batch_size, doing, problems):
        yield batch, torch.stack(images)


def read_batches(
    paths: list[Path],
    read: Callable[[Path], Read],
    batch_size: int,
    doing: str,
    problems: list[dict[str, str]],
) -> Iterator[tuple[list[Path], list[Read]]]:
    """The readable pictures in groups, each with what was read of them.

    Args:
        doing: what the progress bar on stderr says; there is none where one batch holds all.
        problems: gets {"image": path, "error": message} for each picture that cannot be read.
    """
    from rich.console import Console
    from rich.progress import track

    names: list[Path] = []
    waiting: list[Read] = []
    for path in track(paths, doing, console=Console(stderr=True), transient=True, disable=len(paths) <= batch_size):
        try:
            waiting.append(read(path))
            names.append(path)
        except (ValueError, OSError) as error:
            problems.append({"image": str(path), "error": str(error)})
        if len(waiting) == batch_size:
            yield names, waiting
            names, waiting = [], []
    if waiting:
        yield names, waiting


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


def drawing_paths(option: str, target: Path, paths: list[Path], ending: str, doing: str) -> dict[Path, Path]:
    """The file to draw each picture into: the one that is named, or one for each within the folder.

    Args:
        option: that names the target.
        target: a file for one picture, or a folder.
        ending: of the names of files within a folder, behind those of the pictures.
        doing: what is done with the pictures.

    Raises:
        ValueError: a file is named for several pictures, or one that no picture can be written to, or a picture
            that is worked on.
    """
    distinct = list(dict.fromkeys(paths))
    if target.is_dir() or not target.suffix:
        drawings = {}
        count: Counter[str] = Counter()
        for path in distinct:
            count[path.stem] += 1
            again = "" if count[path.stem] == 1 else f"-{count[path.stem]}"
            drawings[path] = target / f"{path.stem}-{ending}{again}.png"
    else:
        check_output(option, target)
        if len(distinct) > 1:
            raise ValueError(f"{option} {target}: a file shows one picture; for {len(distinct)} name a folder")
        drawings = dict.fromkeys(distinct, target)
    for drawing in drawings.values():
        if any(drawing.resolve() == path.resolve() for path in distinct):
            raise ValueError(f"{option} {target}: {drawing} is a picture to be {doing}; choose another name")
    return drawings
