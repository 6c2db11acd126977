"""train.py as a person runs it, for the tests of what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from lightning.pytorch.callbacks import Callback

root = Path(__file__).parent.parent
often = ("callbacks.last_within_epoch.train_time_interval=null", "+callbacks.last_within_epoch.every_n_train_steps=2")
kill = "+callbacks.kill._target_=tests.train_runs.KillAfterStep"  # with +callbacks.kill.step=NUMBER


class KillAfterStep(Callback):
    """Ends the process at once, as a power cut does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(*overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs train.py in a process of its own, in one thread."""
    command = [sys.executable, "train.py", *overrides]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())
