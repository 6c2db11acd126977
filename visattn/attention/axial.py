"""Axial attention: along rows, or along columns, of a map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visattn.attention.dot_product import attention_weights, dot_product_attention
from visattn.attention.self_attention import SelfAttention, check_grid


def axial_attention(query: Tensor, key: Tensor, value: Tensor, axis: str, scale: float | None = None) -> Tensor:
    """Every query sees the keys of its row ("width") or of its column ("height"). Cost: tokens * side * head_dim.

    Args:
        query, key, value: (batch, height, width, heads, head_dim).
        axis: "width" or "height".
        scale: of the scores; None is 1 / sqrt(head_dim).

    Returns:
        (batch, height, width, heads, head_dim).

    Raises:
        ValueError: the axis is another.

    Source: Ho et al. 2019, https://arxiv.org/abs/1912.12180, section 3.
    """
    if axis not in ("width", "height"):
        raise ValueError(f"axis {axis!r} is unknown; choose width or height")
    query, key, value = (lines_of(tensor, axis) for tensor in (query, key, value))
    attended = dot_product_attention(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), scale=scale)
    attended = attended.unflatten(0, query.shape[:2]).transpose(2, 3)  # (batch, lines, side, heads, head_dim)
    return attended if axis == "width" else attended.transpose(1, 2)


def lines_of(cells: Tensor, axis: str) -> Tensor:
    """(batch, height, width, heads, head_dim) to (batch, lines, heads, side, head_dim)."""
    return (cells if axis == "width" else cells.transpose(1, 2)).transpose(2, 3)


class AxialAttention(SelfAttention):
    """Self-attention whose heads see the row of a token, its column, or in equal parts one of the two.

    With both, two layers let every token see all others, and the heads of one layer see a cross.

    Args:
        dim, num_heads, **options: see `SelfAttention`.
        axis: "width", "height" or "both".

    Raises:
        ValueError: the axis is unknown, or both are to share an odd number of heads.

    Source: Ho et al. 2019, https://arxiv.org/abs/1912.12180; both at once as the stripes of width 1 in Dong et al. 2022
        (CSWin, https://arxiv.org/abs/2107.00652), section 3.2.
    """

    def __init__(self, dim: int, num_heads: int, *, axis: str = "both", **options: Any) -> None:
        super().__init__(dim, num_heads, **options)
        if axis not in ("width", "height", "both"):
            raise ValueError(f"axis {axis!r} is unknown; choose width, height or both")
        if axis == "both" and num_heads % 2:
            raise ValueError(f"{num_heads} heads can't be shared by rows and columns; choose an even number")
        self.shares = {"width": num_heads // 2, "height": num_heads // 2} if axis == "both" else {axis: num_heads}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        check_grid(query, grid, "axial")
        cells = torch.stack((query, key, value)).transpose(2, 3).unflatten(2, grid)  # (3, batch, height, width, ...)
        parts = cells.split(list(self.shares.values()), dim=4)  # of the heads
        attended = [axial_attention(q, k, v, axis) for (q, k, v), axis in zip(parts, self.shares, strict=True)]
        return torch.cat(attended, dim=3).flatten(1, 2).transpose(1, 2)

    def look(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> Tensor:
        check_grid(query, grid, "axial")
        place = torch.arange(grid[0] * grid[1], device=query.device)
        lines = {"width": place // grid[1], "height": place % grid[1]}
        masks = [(lines[axis][:, None] == lines[axis]).expand(heads, -1, -1) for axis, heads in self.shares.items()]
        return attention_weights(query, key, torch.cat(masks))
