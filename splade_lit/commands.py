"""What all commands share: how bad input ends, where they run, and what they may write."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from splade_lit.errors import UserError


def run_command(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a command; bad input ends with one sentence on stderr and exit code 2.

    Args:
        main: takes the arguments of the command line, None for the real ones.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("splade_lit").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning\..*|torch\..*|jsonargparse\..*")
    try:
        main(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def default_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_writable(*paths: Path | None) -> None:
    """Check before any long work that these files or folders can be written; None is passed over.

    Raises:
        UserError: one cannot.
    """
    for path in paths:
        if path is None:
            continue
        existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        usable = existing.is_dir() or existing == path
        if not usable or not os.access(existing, os.W_OK):
            raise UserError(f"{path} cannot be written; choose another place.")
