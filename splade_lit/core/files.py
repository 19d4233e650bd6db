"""Where files go, and writing them so that a reader never sees half of one."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from splade_lit.core.errors import UserError

Folder = str | Path | None
"""A folder that has a default."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; moved to `path` at the end, removed where the block raised.

    An OSError says that the folder cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        temporary = Path(folder, path.name)
        yield temporary
        temporary.replace(path)


def check_not_read(output: Path, files: Iterable[Path]) -> None:
    """Raise a UserError if what is to be written is one of the files that are read."""
    if output.resolve() in {file.resolve() for file in files}:
        raise UserError(f"{output} is what is read; give another name for what is written.")


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole, and its folder; a UserError if it cannot be, which leaves what was there before."""
    try:
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); free space or choose another folder.") from error


def check_writable(file: Path | None = None, folder: Path | None = None) -> None:
    """Raise a UserError, before any long work, if a file or a folder cannot be written; None is passed over."""
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


def cache_folder(folder: Folder = None) -> Path:
    """`folder`, else the environment variable SPLADE_LIT_CACHE, else `~/.cache/splade_lit`; not created here."""
    return Path(folder or os.environ.get("SPLADE_LIT_CACHE") or "~/.cache/splade_lit").expanduser()
