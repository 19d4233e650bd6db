"""What becomes of a run on this machine where one of its processes dies."""

import os
import signal
import sys
import time
from typing import Any

from lightning.fabric.strategies.launchers import subprocess_script

PATIENCE = 30.0
"""Seconds."""


class PatientObserver(subprocess_script._ChildProcessObserver):
    """Gives this process time to end by itself where another has died, which Lightning's own kills within seconds.

    It sees so, saves and says so when it next hears from the other. Where that takes longer than `PATIENCE`, as in an
    evaluation, it is asked to stop; where it waits for ever, as for a GPU that waits for another, it is killed.
    """

    def _terminate_all(self) -> None:
        time.sleep(PATIENCE)  # this thread ends with its process
        text = "error: another process of the run has ended, so that this one is stopped; go on with --ckpt_path last."
        print(text, file=sys.stderr, flush=True)
        os.kill(self._main_pid, signal.SIGTERM)
        time.sleep(PATIENCE)
        super()._terminate_all()


def observe_patiently() -> None:
    """Have Lightning take this observer from now on."""
    module: Any = subprocess_script
    module._ChildProcessObserver = PatientObserver
