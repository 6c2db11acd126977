"""The one door by which pictures come in."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

image_suffixes = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_formats = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_one_at_a_time = threading.Lock()  # the filters of warnings belong to the whole process


class ImageFileError(ValueError):
    """A file is no picture that can be read; the message begins with its path."""


def open_image(path: str | os.PathLike[str], max_pixels: int = 100_000_000) -> Image.Image:
    """Reads a whole picture: upright by its EXIF orientation, in RGB, transparent parts on white.

    Args:
        max_pixels: pictures with more pixels are refused before they are decoded, since small files can unfold to
            pictures that exhaust the memory.

    Raises:
        FileNotFoundError: there is no such file.
        ImageFileError: the file is no picture, truncated, or too large.
    """
    return _decode(Path(path), max_pixels, shrink=False)[0]


def check_image(path: str | os.PathLike[str], max_pixels: int = 100_000_000) -> tuple[int, int]:
    """Raises what `open_image` would, for JPEG in a fraction of its time; returns the picture's (height, width)."""
    return _decode(Path(path), max_pixels, shrink=True)[1]


def _decode(path: Path, max_pixels: int, shrink: bool) -> tuple[Image.Image, tuple[int, int]]:
    """A picture, in less detail if it may `shrink`, and the (height, width) that it has as a whole, upright."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with quietly():
            file = Image.open(path, formats=_formats)
        with file:
            if file.width * file.height > max_pixels:
                raise ImageFileError(f"{path}: {file.width}x{file.height} pixels are more than {max_pixels:,}")
            width, height = file.size
            if shrink:
                file.draft("RGB", (1, 1))  # the decoder reads everything and computes an eighth of the side
            file.load()
            with quietly():
                if file.getexif().get(ExifTags.Base.Orientation) in range(5, 9):  # it lies on its side
                    width, height = height, width
                ImageOps.exif_transpose(file, in_place=True)
            return to_rgb(file), (height, width)
    except UnidentifiedImageError as error:
        raise ImageFileError(f"{path}: is no picture in a known format ({', '.join(_formats)})") from error
    except (ImageFileError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageFileError(f"{path}: {error}") from error
    except Exception as error:  # whatever a damaged file makes a decoder raise
        raise ImageFileError(f"{path}: truncated or damaged: {error}") from error


def exists(path: Path) -> bool:
    """Whether there is such a file, whatever its name, which others may have chosen."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


@contextmanager
def quietly() -> Iterator[None]:
    """No warnings about damaged metadata, or about sizes, which we judge ourselves; one thread at a time."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB: transparent parts on white, 16 bits scaled to 8.

    Numbers of 32 bits have no agreed range; the smallest in the picture becomes black and the largest white.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray((np.asarray(image) / 257 + 0.5).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        numbers = np.nan_to_num(np.asarray(image, dtype=np.float64))
        span = max(numbers.max() - numbers.min(), 1e-12)
        return Image.fromarray(((numbers - numbers.min()) * (255 / span) + 0.5).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image.convert("RGB")
