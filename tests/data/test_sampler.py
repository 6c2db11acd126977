import pytest

from visattn.data import sampler as module
from visattn.data.sampler import EpochSampler


def in_processes(monkeypatch, processes, rank):
    monkeypatch.setattr(module, "processes_and_rank", lambda: (processes, rank))


def indices(sampler):
    return [index for _, index in sampler]


def test_every_image_occurs_once_in_an_epoch_in_an_order_of_its_own():
    sampler = EpochSampler(50, seed=3)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(indices(sampler))
        assert {first for first, _ in sampler} == {epoch}
        assert sorted(orders[-1]) == list(range(50))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    again = EpochSampler(50, seed=3)
    again.set_epoch(2)
    assert indices(again) == orders[2]
    assert indices(EpochSampler(50, seed=4)) != orders[0]


def test_unshuffled_is_the_order_of_the_data_set():
    assert indices(EpochSampler(7, shuffle=False)) == list(range(7))


def test_skipped_samples_are_left_out_once():
    sampler = EpochSampler(20, seed=1)
    whole = indices(sampler)
    sampler.skip_samples = 8
    assert indices(sampler) == whole[8:]
    assert indices(sampler) == whole


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("length", [24, 25, 29])
@pytest.mark.parametrize("drop_rest", [False, True])
def test_processes_take_turns(monkeypatch, processes, length, drop_rest):
    whole = indices(EpochSampler(length, seed=1))
    parts = []
    for rank in range(processes):
        in_processes(monkeypatch, processes, rank)
        sampler = EpochSampler(length, seed=1, drop_rest=drop_rest)
        parts.append(indices(sampler))
        assert len(sampler) == len(parts[-1])
    assert len({len(part) for part in parts}) == 1
    turns = [index for turn in zip(*parts, strict=True) for index in turn]
    if drop_rest:
        assert turns == whole[: length - length % processes]
    else:
        assert turns == whole + [-1] * (-length % processes)


@pytest.mark.parametrize("length", [24, 25, 29])
def test_two_processes_make_as_many_steps_as_one_with_their_batches_together(monkeypatch, length):
    for batch_size in (1, 2, 3, 5):
        alone = len(EpochSampler(length, drop_rest=True)) // (2 * batch_size)
        in_processes(monkeypatch, 2, 0)
        assert len(EpochSampler(length, drop_rest=True)) // batch_size == alone
        in_processes(monkeypatch, 1, 0)
