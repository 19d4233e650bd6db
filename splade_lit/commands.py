"""What all commands share: how bad input ends, where they run, and what they may write."""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from splade_lit.errors import UserError


def run_command(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> None:
    """Run a command; bad input ends with one sentence on stderr and exit code 2.

    Args:
        main: takes the arguments of the command line, None for the real ones.
        arguments: what to give it.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("splade_lit").setLevel(logging.INFO)
    # Which devices there are, what else to install, and the like.
    for name in ("lightning.pytorch", "lightning.fabric", "bm25s"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\..*|torch\..*|jsonargparse\..*")
    try:
        main(arguments)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@contextmanager
def quiet_package() -> Iterator[None]:
    """No lines of the package's own log but warnings, for what a command tries out on the side."""
    package = logging.getLogger("splade_lit")
    level = package.level
    package.setLevel(logging.WARNING)
    try:
        yield
    finally:
        package.setLevel(level)


def pick_device(name: str | None) -> torch.device:
    """The device of this name; `cuda` where there is one, else `cpu`, if none is given.

    Raises:
        UserError: there is no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"there is no device {name} here; give cpu, or cuda where there is a GPU.") from error
    return device


def check_writable(file: Path | None = None, folder: Path | None = None) -> None:
    """Check before any long work that a file and a folder can be written; None is passed over.

    Raises:
        UserError: one cannot.
    """
    if file is not None and file.is_dir():
        raise UserError(f"{file} is a folder; give the name of a file.")
    for path, place in ((file, file and file.absolute().parent), (folder, folder and folder.absolute())):
        if path is None or place is None:
            continue
        existing = next(parent for parent in (place, *place.parents) if os.path.exists(parent))
        try:
            with tempfile.TemporaryFile(dir=existing):  # permissions alone do not tell, for the superuser for one
                pass
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); choose another place.") from error
