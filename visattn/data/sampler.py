"""The order of an epoch, from its number alone, split over processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) pairs; the epoch is there for augmentation, which depends on both.

    The order is drawn from (seed, epoch). Processes take turns, so that batch i of all of them together holds the same
    samples as batch i of one process with a batch as large as theirs together. Where the length doesn't divide among
    them, the rest is left out, or index -1 fills up, which the data set labels to be ignored; so all make the same
    number of steps.

    Args:
        length: of the data set.
        seed: of the order.
        shuffle: draw a new order each epoch, or keep that of the data set.
        drop_rest: leave out the rest, as a loader does that drops its last batch; else fill up.
        share: how many processes take turns, and which of them this one is; None is all of `torch.distributed`.

    Attributes:
        processes, rank: the share.
        epoch: set by `set_epoch`, which Lightning calls.
        skip_samples: how many samples, of all processes together, the next iteration leaves out at its beginning.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_rest: bool = False,
        share: tuple[int, int] | None = None,
    ) -> None:
        self.length, self.seed, self.shuffle, self.drop_rest = length, seed, shuffle, drop_rest
        self.processes, self.rank = share or processes_and_rank()
        self.epoch, self.skip_samples = 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.arange(self.length)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.length, generator=generator)
        if self.drop_rest:
            order = order[: self.length - self.length % self.processes]
        else:
            order = torch.cat([order, order.new_full((-self.length % self.processes,), -1)])
        skip, self.skip_samples = self.skip_samples, 0
        for index in order[skip + self.rank :: self.processes].tolist():
            yield self.epoch, index

    def __len__(self) -> int:
        return self.length // self.processes if self.drop_rest else -(-self.length // self.processes)


def processes_and_rank() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0
