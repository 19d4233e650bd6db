"""Folders whose files are written whole: on disk, or at any address that fsspec knows, such as `s3://` or `gs://`."""

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol, cast
from uuid import uuid4

from splade_lit.core.errors import UserError
from splade_lit.core.files import hold_folder, whole_file

# Where a file is there only once all of it has been sent.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "hf", "memory"}


class Store(Protocol):
    """A folder of files, none of which a reader sees half of; OSErrors are those of the place."""

    address: str

    def open(self, name: str) -> BinaryIO:
        """A file to read from; a FileNotFoundError if there is none."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file, or put another in its place."""

    def names(self) -> list[str]:
        """The names of all files but hidden ones, in order; none where there is no folder."""

    def remove(self, name: str) -> None:
        """Remove a file."""

    def hold(self) -> None:
        """Keep other processes from writing until `release`; a UserError if one of them does. Known on disk only."""

    def release(self) -> None:
        """Let others write."""


def open_store(address: str | Path) -> Store:
    """The folder of this path or address, which need not be there; a UserError if nothing here knows the address."""
    if "://" not in str(address):
        return _Folder(Path(address))
    if str(address).startswith("file://"):
        return _Folder(Path(str(address).removeprefix("file://")))
    return _Remote(str(address))


class _Folder:
    def __init__(self, path: Path) -> None:
        self.address, self._path = str(path), path

    def open(self, name: str) -> BinaryIO:
        return (self._path / name).open("rb")

    def write(self, name: str, data: bytes) -> None:
        with whole_file(self._path / name) as temporary:
            temporary.write_bytes(data)

    def names(self) -> list[str]:
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(name for name in os.listdir(self._path) if not name.startswith("."))
        return []

    def remove(self, name: str) -> None:
        (self._path / name).unlink()

    def hold(self) -> None:
        self._held = hold_folder(self._path)

    def release(self) -> None:
        self._held.release()


class _Remote:
    def __init__(self, address: str) -> None:
        import fsspec

        try:
            self._files, root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise UserError(f"{address}: {str(error).rstrip('.')}.") from error
        self.address, self._root = address, root.rstrip("/")
        protocols = self._files.protocol
        protocols = {protocols} if isinstance(protocols, str) else set(protocols)
        self._sends_whole = bool(protocols & _OBJECT_STORES)

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, self._files.open(f"{self._root}/{name}", "rb"))

    def write(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        if self._sends_whole:
            self._files.pipe_file(path, data)
            return
        self._files.makedirs(self._root, exist_ok=True)
        temporary = f"{self._root}/.{name}-{uuid4().hex}"
        try:
            self._files.pipe_file(temporary, data)
            try:
                self._files.mv(temporary, path)
            except Exception:  # not all replace what is there, and each says so in its own way
                if not (self._files.exists(path) and self._files.exists(temporary)):
                    raise
            if self._files.exists(temporary):  # or does not say so
                self._files.rm_file(path)
                self._files.mv(temporary, path)
        finally:
            if self._files.exists(temporary):
                self._files.rm_file(temporary)

    def names(self) -> list[str]:
        self._files.invalidate_cache(self._root)
        with suppress(FileNotFoundError):
            names = (str(path).rsplit("/", 1)[-1] for path in self._files.ls(self._root, detail=False))
            return sorted(name for name in names if not name.startswith("."))
        return []

    def remove(self, name: str) -> None:
        self._files.rm_file(f"{self._root}/{name}")

    def hold(self) -> None:
        pass

    def release(self) -> None:
        pass
