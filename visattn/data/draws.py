"""Random numbers that belong to an index: the same alone or among many, in any order, in any process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_step = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio


def uniform_draws(keys: Sequence[int], indices: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """Numbers in [0, 1) from (keys, index) alone, for all indices at once.

    A generator object per index would take longer than the augmentation that it serves.

    Args:
        keys: whole numbers, such as a seed and an epoch; negative ones count modulo 2^64.
        indices: N whole numbers from 0 on.
        count: of draws for each index.

    Returns:
        (N, count) float64, with 53 random bits each.

    Source: Steele et al. 2014, "Fast splittable pseudorandom number generators" (SplitMix64): each index has a stream
        of its own, whose start is mixed from the keys and the index.
    """
    start = np.zeros(1, dtype=np.uint64)
    for key in keys:
        start = _mix((start ^ np.uint64(key % 2**64)) + _step)
    streams = _mix(start ^ _mix(np.asarray(indices).astype(np.uint64) + _step))  # (N,)
    bits = _mix(streams[:, None] + _step * np.arange(1, count + 1, dtype=np.uint64))  # (N, count)
    return (bits >> np.uint64(11)) * 2.0**-53


def _mix(bits: np.ndarray) -> np.ndarray:
    """Scatters the differences of uint64 numbers over all their bits, one to one."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
