"""Maps of a batch of images of several sizes: where they are padding, and waves that tell a place in the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def map_padding(padding: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which cells of a map are padding: of pixels (B, H, W), bool, to cells (B, height, width), bool.

    A cell is padding where its first pixel is.
    """
    return functional.interpolate(padding[:, None].float(), size=grid, mode="nearest")[:, 0] > 0.5


def image_part(padding: Tensor) -> Tensor:
    """How much of a map's (width, height) is image: of cells (B, height, width), bool, to (B, 2) in (0, 1]."""
    present = (~padding).float()
    return torch.stack([present[:, 0].mean(dim=1), present[:, :, 0].mean(dim=1)], dim=1)


def map_positions(padding: Tensor, dim: int, *, centered: bool = True) -> Tensor:
    """Waves that tell where in its image each cell is: padding (B, height, width) to (B, height * width, dim).

    The first half of the channels speaks of the row, the second of the column.

    Args:
        centered: a cell is at its center (Deformable DETR), or at its lower right corner (DETR).

    Source: Carion et al. 2020, https://arxiv.org/abs/2005.12872, A.4.
    """
    present = (~padding).float()
    places = []
    for axis in (1, 2):
        count = present.cumsum(dim=axis)  # (B, height, width), from 1
        places.append((count - 0.5 * centered) / (count.amax(dim=axis, keepdim=True) + 1e-6))
    return waves(torch.stack(places, dim=-1), dim // 2).flatten(3).flatten(1, 2)


def waves(places: Tensor, dim: int, temperature: float = 10_000.0) -> Tensor:
    """Sines and cosines in turn, of falling frequency, of numbers in [0, 1]: (...) to (..., dim)."""
    exponents = torch.arange(dim, device=places.device).div(2, rounding_mode="floor") * (2 / dim)
    angles = 2 * math.pi * places[..., None].float() / temperature**exponents  # (..., dim)
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2).to(places.dtype)
