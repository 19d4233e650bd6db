"""The folder of what is worth computing once, and files that are either whole or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CACHE_VARIABLE = "SPLADE_LIT_CACHE"


def cache_folder(folder: str | Path | None = None) -> Path:
    """`folder`, else the environment variable SPLADE_LIT_CACHE, else `~/.cache/splade_lit`; not created here."""
    chosen = folder or os.environ.get(CACHE_VARIABLE) or "~/.cache/splade_lit"
    return Path(chosen).expanduser()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; moved to `path` at the end, removed where the block raised.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
