"""Memory that training and encoding have freed: given back."""

import platform
import subprocess
import sys

import numpy as np
import pytest
from scipy.sparse import csr_array

from splade_lit.encoder.pruning import Pruning
from splade_lit.encoder.rows import encode_by_length

SCRIPT = """
import torch
from splade_lit.core.host_memory import return_free_memory
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


@pytest.mark.parametrize(("documents", "returns"), [(1, 0), (2, 2), (17, 17)])
def test_encoding_gives_it_back_as_it_goes(documents, returns, monkeypatch):
    counted = []
    monkeypatch.setattr("splade_lit.encoder.rows.return_free_memory", lambda: counted.append(True))
    token_ids = [np.arange(5)] * documents
    encode_by_length(lambda batch: csr_array((len(batch), 9), dtype=np.float32), token_ids, 5, Pruning(), None)
    assert len(counted) == returns
