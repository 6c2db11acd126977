"""The one door by which pictures come in."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

image_suffixes = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_formats = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_formats) as file:
                if file.width * file.height > max_pixels:
                    raise ImageFileError(f"{path}: {file.width}x{file.height} pixels are more than {max_pixels:,}")
                file.load()
                image = ImageOps.exif_transpose(file)
    except UnidentifiedImageError as error:
        raise ImageFileError(f"{path}: is no picture in a known format ({', '.join(_formats)})") from error
    except Image.DecompressionBombError as error:
        raise ImageFileError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, ImageFileError):
            raise
        raise ImageFileError(f"{path}: truncated or damaged: {error}") from error
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image.convert("RGB")
