"""Memory that training has freed: given back."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from splade_lit.encoder.body.recompute import return_free_memory
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
torch.ones(30 << 18)  # a freed block of this size has glibc keep smaller ones
before = resident()
blocks, separators = [], []
for _ in range(20):
    blocks.append(torch.ones(8 << 18))
    separators.append(torch.ones(1 << 18))  # larger than holes that imports have left
blocks.clear()
kept = resident() - before
return_free_memory()
print(kept >> 10, (resident() - before - 20 * 1024) >> 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_free_memory_is_given_back():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, after = (int(number) for number in result.stdout.split())
    assert kept > 100
    assert after < 20
