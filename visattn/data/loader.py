"""A DataLoader that continues in the middle of an epoch, and the data module that keeps its place."""

from __future__ import annotations

from typing import Any

import lightning
from torch.utils.data import DataLoader, Dataset

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
        self.sampler.skip_samples = self._batches_done * (self.batch_size or 1) * self.sampler.processes
        for batch in super().__iter__():
            self._batches_done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.sampler.epoch, "batches_done": self._batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume_from = state


class ResumableData(lightning.LightningDataModule):
    """A data module whose epochs depend on their number alone, and go on where a killed run left off.

    Its data sets give whole batches: `__getitems__` takes the (epoch, index) pairs of an `EpochSampler`.

    Args:
        batch_size: of each process.
        num_workers: processes that make batches; 0 makes them in the training process.
        seed: of the order of an epoch, and of all else that is drawn.
    """

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._train_loader: ResumableLoader | None = None
        self._place: dict[str, int] | None = None  # within an epoch, where a resumed run goes on

    def shuffled(self, batches: Dataset) -> ResumableLoader:
        """A loader for training, in an order drawn for each epoch."""
        length = len(batches)  # type: ignore[arg-type]
        share = self.share_of_epoch()
        # A last batch of few images disturbs batch norm and the average.
        whole = length >= self.batch_size * share[0]
        sampler = EpochSampler(length, self.seed, shuffle=True, drop_rest=whole, share=share)
        self._train_loader = ResumableLoader(batches, sampler=sampler, drop_last=whole, **self.loader_options())
        if self._place is not None:
            self._train_loader.load_state_dict(self._place)
        return self._train_loader

    def in_order(self, batches: Dataset) -> DataLoader:
        """A loader for evaluation, in the order of the data set."""
        length = len(batches)  # type: ignore[arg-type]
        sampler = EpochSampler(length, shuffle=False, share=self.share_of_epoch())
        return DataLoader(batches, sampler=sampler, **self.loader_options())

    def share_of_epoch(self) -> tuple[int, int]:
        """Among how many processes the strategy of a run splits an epoch, and which part is this one's."""
        split = self.trainer.distributed_sampler_kwargs if self.trainer else None
        return (split["num_replicas"], split["rank"]) if split else processes_and_rank()

    # Lightning gives a loader's state back only to loaders made after the checkpoint was read, and some are made
    # before (to count the steps of a schedule), so the place within the epoch is kept here.
    def state_dict(self) -> dict[str, dict[str, int]]:
        return {} if self._train_loader is None else {"train_loader": self._train_loader.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, int]]) -> None:
        self._place = state.get("train_loader")

    def loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "collate_fn": as_it_is,
            "persistent_workers": False,
        }


def as_it_is(batch: Any) -> Any:
    """Batches come whole out of the data set."""
    return batch
