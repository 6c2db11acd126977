import time

import torch

from visattn.benchmark.measure import peak_memory, time_alternatives


def test_the_slower_function_takes_longer():
    times = time_alternatives({"short": lambda: None, "long": lambda: time.sleep(0.01)}, seconds=0.05)
    assert times["short"] < 0.01 <= times["long"]


def test_peak_memory_counts_what_lives_at_once():
    def run():
        torch.empty(1000, 1000).fill_(1)
        first, second = torch.empty(1000, 1000), torch.empty(1000, 1000)
        return first.shape, second.shape

    assert 8_000_000 <= peak_memory(run) < 8_100_000
