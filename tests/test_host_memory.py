"""Memory that training frees: given back at once."""

import platform
import subprocess
import sys

import pytest

from splade_lit.host_memory import return_large_blocks

SCRIPT = """
import sys, torch
from splade_lit.host_memory import return_large_blocks
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
if sys.argv[1] == "yes":
    assert return_large_blocks()
before = resident()
for mib in (30, 20, 10):  # freed blocks raise glibc's threshold, so that the next ones would be kept
    block = torch.ones(mib << 18)
    between = torch.ones(1000)
    del block
kept = [torch.ones(1000)]
blocks = [torch.ones(8 << 18) for _ in range(20)]
separators = [torch.ones(100) for _ in range(20)]
del blocks[:19]
print((resident() - before) >> 10)
"""


def held_mib(returned: str) -> int:
    result = subprocess.run([sys.executable, "-c", SCRIPT, returned], capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_blocks_are_given_back(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert held_mib("yes") < 40 < held_mib("no")


def test_a_setting_of_the_users_own_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    assert not return_large_blocks()
