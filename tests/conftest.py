"""Test files run side by side, one process for each core, so each has one thread: more would wait for each other."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported


@pytest.fixture(scope="module", autouse=True)
def the_same_random_numbers_in_any_order_of_the_files():
    import torch

    torch.manual_seed(0)
