"""Test files run side by side, one process for each core, so each has one thread: more would wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
