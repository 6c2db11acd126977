"""Benchmarks: ours and the alternatives in one run, on this machine, as ratios. `python -m visattn.benchmark NAME`."""
