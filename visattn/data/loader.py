"""A DataLoader that continues in the middle of an epoch."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from visattn.data.sampler import EpochSampler, processes_and_rank


class ResumableLoader(DataLoader):
    """A DataLoader over an `EpochSampler`, whose position Lightning keeps in its checkpoints and gives back.

    Iteration starts when the first batch is asked for rather than when `iter` is called, because Lightning calls `iter`
    before it tells the sampler which epoch it is.
    """

    sampler: EpochSampler

    def __init__(self, dataset, *, sampler: EpochSampler, **keywords: Any) -> None:
        self._batches_done = 0
        self._resume_from: dict[str, int] | None = None
        super().__init__(dataset, sampler=sampler, **keywords)

    def __iter__(self) -> Any:
        self._batches_done = 0
        if self._resume_from is not None and self._resume_from["epoch"] == self.sampler.epoch:
            self._batches_done = self._resume_from["batches_done"]
        self._resume_from = None
        self.sampler.skip_samples = self._batches_done * (self.batch_size or 1) * processes_and_rank()[0]
        for batch in super().__iter__():
            self._batches_done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.sampler.epoch, "batches_done": self._batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume_from = state
