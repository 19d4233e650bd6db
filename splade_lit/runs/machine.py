"""What a run ran on: the machine, and the versions of packages."""

import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import psutil

_PACKAGES = {"splade_lit": "splade-lit", "Transformers": "transformers", "PyTorch": "torch", "Lightning": "lightning"}
_PACKAGES |= {"Datasets": "datasets", "Tokenizers": "tokenizers", "CodeCarbon": "codecarbon"}


@dataclass(frozen=True)
class Hardware:
    """The machine: None where it does not tell."""

    cpu_model: str | None
    ram_gb: float | None
    gpus: list[str]


def hardware(gpus: Sequence[str]) -> Hardware:
    """The machine that this runs on, with the names of the GPUs in use."""
    from codecarbon.core.util import detect_cpu_model

    return Hardware(detect_cpu_model() or None, psutil.virtual_memory().total / 1024**3, list(gpus))


def package_versions() -> dict[str, str]:
    """Name to version of Python and of the packages that training runs on."""
    versions = {"Python": platform.python_version()}
    for name, package in _PACKAGES.items():
        with suppress(PackageNotFoundError):
            versions[name] = version(package)
    return versions
