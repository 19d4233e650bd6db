"""What search engines have in common here: build, add, delete, search, open by address."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import unquote

from scipy.sparse import csr_array

from splade_lit.core.errors import UserError
from splade_lit.core.text import parse_json
from splade_lit.engines.known_hosts import remember

INDEX_JSON = "index.json"
"""The file of an index that is written last, and says which engine reads it."""

Part = tuple[Sequence[str], csr_array, Sequence[str] | None]
"""Ids, vectors, and texts if they are to be kept."""

Parts = Callable[[], Iterable[Part]]
"""Gives documents a part at a time, the same at each call."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,54}")  # with the number of a build
_MOST_LETTERS = 50  # without it
# In front of an @, where HTTP has nothing but secrets, or in a setting; libpq has two that are names of files.
_PASSWORD = re.compile(
    r"^[a-z0-9+]+://[^/@]*:[^/@]+@|^https?://[^/?#]*@|[?&](?!passfile=|sslkey=)[^=&#]*(?:pass|key|token|secret)",
    re.IGNORECASE,
)


class Hit(NamedTuple):
    """A document that shares a term with a query."""

    id: str
    score: float


@dataclass(frozen=True)
class IndexStats:
    """What an index holds.

    Attributes:
        engine: its name.
        num_documents: documents that can be found.
        num_postings: weights of all of them; None where the engine does not count them.
        num_bytes: of its files; None where the engine does not say.
    """

    engine: str
    num_documents: int
    num_postings: int | None
    num_bytes: int | None


@dataclass(frozen=True)
class Server:
    """Where a server keeps documents, as it was given.

    Attributes:
        url: its address, without a password or a key.
        name: of the collection, table or index there; each build adds its number.
    """

    url: str
    name: str

    def __post_init__(self) -> None:
        if any(map(_PASSWORD.search, (self.url, unquote(self.url)))):
            raise UserError(
                "--url holds a password or a key, which index.json would show; docs/engines.md says where it goes."
            )
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"{self.name!r} is no name for a server: give lower-case letters, digits and _, 50 at most, a letter "
                "first, with --name."
            )
        if type(self) is Server:
            remember(self.url)

    def check_room(self) -> None:
        """Raise a UserError if the name leaves no room for the number of a build."""
        if len(self.name) > _MOST_LETTERS:
            raise UserError(f"{self.name!r} is too long; give a name of {_MOST_LETTERS} letters at most, with --name.")


class StoredServer(Server):
    """Where a server keeps documents, as the files of an index say; `check_known` tells whether passwords go there."""


class NameTakenError(UserError):
    """A server has something of a name, such as "a table", that is not of the folder which is built."""

    def __init__(self, place: str, what: str, name: str) -> None:
        super().__init__(f"{place} has {what} {name} that is not of this folder; give another --name.")


def default_name(folder: Path) -> str:
    """The name on a server of what a folder is the index of.

    >>> default_name(Path("runs/My docs.index"))
    'my_docs_index'
    """
    name = re.sub(r"[^a-z0-9]+", "_", folder.absolute().name.lower()).strip("_")[:40]
    return name if _NAME.fullmatch(name) else f"index_{name}"[:40]


class Index(Protocol):
    """Documents that can be searched; the score of a hit is the dot product with the query."""

    vocab_size: int

    def __init__(self, folder: str | Path) -> None:
        """Open the index in a folder; a UserError says that there is none, or it is damaged."""

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
        """Write an index of documents that come a part at a time.

        What is in the folder gives way once the index is whole.

        Args:
            folder: a new or empty folder, or one with an index of this engine.
            parts: the documents; some engines ask for them twice.
            vocab_size: dims of a vector.
            copy_query: writes the query side of the model to a folder.
            model: fingerprint of the model that made the vectors.
            server: where the documents are kept, for engines that have one.

        Raises:
            UserError: another process writes there, the folder holds something else, it cannot be written, two
                documents have one id, or the server does not answer.
        """

    @classmethod
    def check(cls, folder: Path, server: Server | None) -> None:
        """Raise a UserError, before any long work, if a build could not begin.

        A package is missing, the folder holds something else than an index of this engine, or the server does not
        answer, is missing, or is of no use.
        """

    @property
    def query_folder(self) -> Path | None:
        """The folder with the query side of the model that the index was made with."""

    @property
    def model(self) -> str | None:
        """Fingerprint of the model that made the vectors."""

    def add(self, ids: Sequence[str], vectors: csr_array, texts: Sequence[str] | None = None) -> None:
        """Add documents, float32 `[documents, vocab]`; those whose ids are there already take their places."""

    def delete(self, ids: Collection[str]) -> int:
        """Delete documents; how many were there."""

    def search(self, queries: csr_array, k: int, only: Collection[str] | None = None) -> list[list[Hit]]:
        """The best k documents of each query, `[queries, vocab]`, best first, and of equal scores the lower id first.

        Documents that share no term with a query are no hits. With `only`, no others than these are found.
        """

    def text(self, id: str) -> str | None:
        """The text of a document, if it was kept."""

    def weights(self, id: str, dims: Sequence[int]) -> list[float]:
        """The weights of some dims of a document; 0 where it has none."""

    def stats(self) -> IndexStats:
        """What it holds."""

    def close(self) -> None:
        """Let go of files and connections."""


def read_index_json(folder: Path) -> dict[str, Any]:
    """What the file of an index says; a UserError if there is none, or it is damaged."""
    path = folder / INDEX_JSON
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no index; give one that python -m splade_lit.index has written.") from None
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged; build the index again.")
    return content
