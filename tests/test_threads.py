"""How torch's threads wait is set before torch is loaded, and only where the user has set nothing."""

import subprocess
import sys

import pytest
from command_runs import environment

CODE = """
import os, sys
from splade_lit.command_line import threads
from splade_lit.command_line.exit_codes import run_command

threads.WAITING = {"GOMP_SPINCOUNT": "321"}

def main(arguments):
    assert "torch" not in sys.modules
    import torch

run_command(main)
"""


def omp_settings(**changes: str) -> str:
    """What OpenMP's library says of its settings when a command has loaded torch."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    env = {name: value for name, value in environment().items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=env | {"OMP_DISPLAY_ENV": "verbose"} | changes,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch has another OpenMP library here")
    return done.stderr


def test_commands_set_how_threads_wait_before_torch_is_loaded():
    assert "GOMP_SPINCOUNT = '321'" in omp_settings()


def test_what_the_user_sets_is_kept():
    assert "GOMP_SPINCOUNT = '77'" in omp_settings(GOMP_SPINCOUNT="77")
    passive = omp_settings(OMP_WAIT_POLICY="passive")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in passive
    assert "'321'" not in passive
    assert "'321'" not in omp_settings(KMP_BLOCKTIME="0")
