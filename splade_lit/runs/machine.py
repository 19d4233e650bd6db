"""What a run ran on: the machine, and the versions of packages."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = {
    "splade_lit": "splade-lit",
    "Transformers": "transformers",
    "PyTorch": "torch",
    "Lightning": "lightning",
    "Datasets": "datasets",
    "Tokenizers": "tokenizers",
    "CodeCarbon": "codecarbon",
}


@dataclass(frozen=True)
class Hardware:
    """The machine: None where it does not tell."""

    cpu_model: str | None
    ram_gb: float | None
    gpus: list[str]


def hardware(gpus: Sequence[str]) -> Hardware:
    """The machine that this runs on.

    Args:
        gpus: names of the GPUs in use.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    try:
        ram_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    except (ValueError, OSError, AttributeError):  # not a POSIX system
        ram_gb = None
    return Hardware((names or [platform.processor()])[0] or None, ram_gb, list(gpus))


def package_versions() -> dict[str, str]:
    """Name to version of Python and of the packages that training runs on."""
    versions = {"Python": platform.python_version()}
    for name, package in _PACKAGES.items():
        try:
            versions[name] = version(package)
        except PackageNotFoundError:
            continue
    return versions
