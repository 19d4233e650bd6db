"""Where files go, and writing them so that a reader never sees half of one."""

import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from splade_lit.core.errors import UserError

Folder = str | Path | None
"""A folder that has a default."""
LOCK = ".lock"
"""The file in a folder that the process writing there has locked."""

logger = logging.getLogger(__name__)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; moved to `path` at the end, removed where the block raised.

    An OSError says that the folder cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        temporary = Path(folder, path.name)
        yield temporary
        # Else a machine that goes down could leave an empty file where a good one was.
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` to write to; at the end it takes the place of `path`, whatever was there.

    Where the block raises, it is removed, and `path` stays as it was. What killed processes have left is removed first.
    An OSError says that it cannot be written.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        held = hold_folder(Path(scratch))
        try:
            new, old = Path(scratch, path.name), Path(scratch, "old")
            new.mkdir()
            yield new
            for written in (*new.rglob("*"), new):
                written.chmod(0o755 if written.is_dir() else 0o644)
                _flush(written)
            if path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except BaseException:
                if old.exists():
                    old.rename(path)
                raise
            _flush(path.parent)
        finally:
            held.release()


def _remove_left(path: Path) -> None:
    """Remove temporary folders of `whole_folder` that no process has for itself any more."""
    for left in path.parent.iterdir():
        named = re.fullmatch(rf"\.{re.escape(path.name)}-[a-z0-9_]{{8}}", left.name)
        if not (named and (left / LOCK).is_file() and {one.name for one in left.iterdir()} <= {path.name, "old", LOCK}):
            continue
        with suppress(UserError):  # another process is writing there
            held = hold_folder(left)
            if held.is_locked and not path.exists() and (left / "old").exists():
                (left / "old").rename(path)  # it was killed between two names
            if held.is_locked:
                shutil.rmtree(left, ignore_errors=True)
            held.release()


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk itself."""
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
            raise
    finally:
        os.close(descriptor)


def hold_folder(folder: Path) -> FileLock:
    """Have a folder for oneself until `release` of what is returned, or until this process ends, in whatever way.

    A UserError says that another process has it. Where a file system has no locks, nobody is kept away.
    """
    # A file alone, which newer versions would take for a lock where there is none, stays when a machine goes down.
    soft: Any = {"fallback_to_soft": False} if "fallback_to_soft" in signature(FileLock.__init__).parameters else {}
    lock = FileLock(folder / LOCK, **soft)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{folder} is being written by another process; wait until it has ended, or give another folder."
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise UserError(f"{folder} cannot be written ({error.strerror}); choose another place.") from error
        logger.info("%s: the file system has no locks; see to it that no other process writes there.", folder)
    remove_unfinished(folder)
    return lock


def remove_unfinished(folder: Path) -> None:
    """Remove what `whole_file` has left in a folder where a process was killed; nobody else may be writing there."""
    for path in folder.glob(".*-*"):
        named = re.fullmatch(r"\.(.+)-[a-z0-9_]{8}", path.name)
        if named and path.is_dir() and {inner.name for inner in path.iterdir()} <= {named[1]}:
            shutil.rmtree(path, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Raise the UserError of `hold_folder` if another process has a folder now."""
    if (folder / LOCK).exists():
        hold_folder(folder).release()


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
