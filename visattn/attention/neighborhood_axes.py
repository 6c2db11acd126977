"""Neighborhood attention along one axis, and in time and space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visattn.attention.neighborhood import axis_keys, check_neighborhood, neighborhood_attention, normalized_attention


def neighborhood_attention_1d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int,
    dilation: int = 1,
    scale: float | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`neighborhood_attention` along one axis. Cost: tokens * kernel_size * head_dim.

    Args:
        query, key, value: (batch, tokens, heads, head_dim).
        kernel_size, dilation, scale, dropout: see `neighborhood_attention`.
        bias: (heads, 2 * kernel_size - 1).

    Returns:
        (batch, tokens, heads, head_dim).

    Raises:
        ValueError: kernel_size * dilation exceeds the tokens.

    Source: Hassani et al. 2023, https://arxiv.org/abs/2204.07143.
    """
    attended = neighborhood_attention(
        query[:, None],
        key[:, None],
        value[:, None],
        (1, kernel_size),
        (1, dilation),
        scale,
        None if bias is None else bias[:, None],
        dropout,
    )
    return attended[:, 0]


def neighborhood_attention_3d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    scale: float | None = None,
) -> Tensor:
    """Neighborhood attention in time and space: every query sees exactly kernel_size[0] frames of a 2-D neighborhood.

    Windows are shifted inward at the first and last frames as at the borders of the map. A frame attends to one other
    frame at a time, and the parts are joined under one softmax. Cost: tokens * keys seen * head_dim.

    Args:
        query, key, value: (batch, frames, height, width, heads, head_dim).
        kernel_size: keys that a query sees along one axis, a number or (frames, vertical, horizontal).
        dilation: distance between neighboring keys, a number or (frames, vertical, horizontal).
        scale: of the scores; None is 1 / sqrt(head_dim).

    Returns:
        (batch, frames, height, width, heads, head_dim).

    Raises:
        ValueError: kernel_size * dilation exceeds the frames or the map, or isn't a number or three.

    Source: Hassani et al. 2023, https://arxiv.org/abs/2204.07143; in three dimensions as NATTEN's na3d.
    """
    kernels, steps = triple(kernel_size, "kernel_size"), triple(dilation, "dilation")
    batch, frames, height, width = query.shape[:4]
    check_neighborhood((frames, frames), kernels[0], steps[0])
    check_neighborhood((height, width), kernels[1:], steps[1:])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    seen = axis_keys(frames, kernels[0], steps[0]).to(query.device)  # (frames, kernel)
    maps = query.flatten(0, 1)  # (batch * frames, height, width, heads, head_dim)
    parts = []
    for other in seen.unbind(1):  # for each frame one that it sees
        keys, values = (tensor[:, other].flatten(0, 1) for tensor in (key, value))
        space = ((kernels[1], kernels[2]), (steps[1], steps[2]))
        parts.append(normalized_attention(maps, keys, values, *space, scale, None, 0.0))
    outputs, normalizers = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
    shares = normalizers.softmax(dim=0).unsqueeze(-1)  # (kernel, batch * frames, height, width, heads, 1)
    return (outputs * shares).sum(dim=0).unflatten(0, (batch, frames))


def triple(value: int | Sequence[int], name: str) -> tuple[int, int, int]:
    """One number for all axes, or (frames, vertical, horizontal)."""
    numbers = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(numbers) != 3:
        raise ValueError(f"{name} {value} is neither one number nor three (frames, vertical, horizontal)")
    return numbers[0], numbers[1], numbers[2]
