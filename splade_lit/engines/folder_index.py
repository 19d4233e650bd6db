"""What engines have alike whose builds are there whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

from splade_lit.core.errors import UserError
from splade_lit.engines.index import Parts, Server
from splade_lit.engines.index_folder import Header, build_whole
from splade_lit.engines.limits import EngineLimits, LimitGuard


class Build(NamedTuple):
    """What is built: documents, what sees to limits in them, and what writes the query side, if there is one."""

    parts: Parts
    guard: LimitGuard
    copy_query: Callable[[Path], None] | None


class FolderIndex:
    """Base of engines whose folder `build_whole` writes; `Index` says what each call does.

    An engine adds `check`, `_write`, changes and searches, and `_check_free` and `_drop` if it works with a server.

    Args:
        folder: of an index that `build` has made.

    Raises:
        UserError: there is no such index, or it is damaged.
    """

    engine: ClassVar[str]
    limits: ClassVar[EngineLimits]

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._header = Header.read(self.folder, self.engine)
        self.vocab_size = self._header.vocab_size

    @classmethod
    def build(
        cls,
        folder: str | Path,
        parts: Parts,
        vocab_size: int,
        copy_query: Callable[[Path], None] | None = None,
        *,
        model: str | None = None,
        server: Server | None = None,
    ) -> Self:
        """See `Index.build`."""
        guard = LimitGuard(cls.limits, vocab_size)
        cls.check(Path(folder), server)

        def write(place: Path, there: Server | None) -> None:
            cls._write(place, there, Build(parts, guard, copy_query))

        build_whole(Path(folder), cls.engine, vocab_size, write, cls._drop, copy_query, model, server, cls._check_free)
        guard.report()
        return cls(folder)

    @classmethod
    def check(cls, folder: Path, server: Server | None) -> None:
        """See `Index.check`."""
        raise NotImplementedError

    @classmethod
    def _write(cls, place: Path, server: Server | None, build: Build) -> None:
        """Write documents into a new folder or to a server; see `build_whole`."""
        raise NotImplementedError

    @classmethod
    def _check_free(cls, server: Server) -> None:
        """Raise a NameTakenError if a server has something of a name already."""

    @classmethod
    def _drop(cls, server: Server) -> None:
        """Remove what a build has written to a server, if it is there."""

    def _check_current(self) -> None:
        """Raise a UserError if the folder has been built again since: what was opened has given way."""
        if Header.read(self.folder, self.engine) != self._header:
            raise UserError(f"{self.folder} has been built again meanwhile; open it again for changes.")

    @property
    def query_folder(self) -> Path | None:
        """The folder with the query side of the model that the index was made with."""
        return self.folder / self._header.query if self._header.query else None

    @property
    def model(self) -> str | None:
        """Fingerprint of the model that made the vectors."""
        return self._header.model
