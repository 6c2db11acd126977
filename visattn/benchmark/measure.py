"""Fair measurements: alternatives take turns, so that a change of the machine's pace meets all of them alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def time_alternatives(
    functions: dict[str, Callable[[], object]], *, seconds: float = 1.0, warmup: int = 2, turns: int = 3
) -> dict[str, float]:
    """The median seconds of one call of each function, called in turns.

    A turn of a function begins with a call that doesn't count, so that it finds its own data in the caches rather than
    that of the alternative before it.

    Args:
        functions: name to a function without arguments.
        seconds: time for all calls together, beyond the warm-up.
        warmup: calls of each function that don't count.
        turns: how many each function has at least.

    Returns:
        name to seconds.
    """
    for function in functions.values():
        for _ in range(warmup):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < turns or time.perf_counter() < end:
        for name, function in functions.items():
            function()
            for _ in range(2):
                synchronize()
                start = time.perf_counter()
                function()
                synchronize()
                times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(function: Callable[[], object]) -> int:
    """The most bytes that torch held during a call, beyond what it held before.

    On a GPU by its own counters; on a CPU by adding up the allocations that torch's profiler saw.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - start
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = peak = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def print_environment() -> None:
    """Prints what the numbers depend on: torch, processor, threads, GPU."""
    print(f"torch {torch.__version__}, python {platform.python_version()}, {platform.system()}")
    print(f"{processor_name()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())


def processor_name() -> str:
    """The processor as Linux names it, elsewhere as python does, with the vector units that torch uses."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
