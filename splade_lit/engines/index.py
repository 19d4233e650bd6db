"""What search engines have in common here: build, add, delete, search, open by address."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from scipy.sparse import csr_array

from splade_lit.core.errors import UserError

INDEX_JSON = "index.json"
"""The file of an index that is written last, and says which engine reads it."""


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
        num_postings: weights of all of them.
        num_bytes: of its files, or of its memory where it has none.
    """

    engine: str
    num_documents: int
    num_postings: int
    num_bytes: int


class Index(Protocol):
    """Documents that can be searched; the score of a hit is the dot product with the query."""

    vocab_size: int

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


def read_index_json(folder: Path) -> dict[str, Any]:
    """What the file of an index says; a UserError if there is none, or it is damaged."""
    path = folder / INDEX_JSON
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no index; give one that python -m splade_lit.index has written.") from None
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged; build the index again.")
    return content
