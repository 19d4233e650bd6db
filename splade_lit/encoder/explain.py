"""Why a document is found: what each term of a query adds to the score, and where the document has the term from."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array


class ReadToken(NamedTuple):
    """A token of a document as the model reads it.

    `start` and `end` are the characters of the text that it stands for; None for special tokens and those of a prompt.
    """

    token: str
    start: int | None
    end: int | None


@dataclass(frozen=True)
class TermShare:
    """What a term of a query adds to the score of a document.

    Attributes:
        dim: of the vectors.
        token: that the dim stands for.
        query_weight: of the query.
        document_weight: of the document; 0 where the term is not active.
        in_text: whether the document's text holds the term as far as the model reads it, prompt and special tokens
            included; if not, the model has added it. None where the text is not known.
        raised_by: the token of the document whose logit of this dim is the largest, and so made the weight; None where
            there is no weight or no model to ask.
    """

    dim: int
    token: str
    query_weight: float
    document_weight: float
    in_text: bool | None
    raised_by: ReadToken | None = None

    @property
    def share(self) -> float:
        """Its part of the score."""
        return self.query_weight * self.document_weight

    @property
    def label(self) -> str:
        """The token, in parentheses if the model has added it."""
        return f"({self.token})" if self.is_added else self.token

    @property
    def is_added(self) -> bool:
        """Whether the document has a weight for it though its text does not hold it."""
        return self.in_text is False and self.document_weight != 0


def term_shares(
    query: csr_array,
    weights: Sequence[float] | np.ndarray,
    tokens: Sequence[str],
    read: Collection[int] | np.ndarray | None = None,
    raised_by: Sequence[ReadToken | None] | None = None,
) -> list[TermShare]:
    """All terms of a query with what they add to the score of a document, the largest share first.

    Args:
        query: one vector, `[1, vocab]`.
        weights: the document's, in the order of the query's terms; 0 where it has none.
        tokens: of the query's terms.
        read: ids of the tokens that the model reads of the document (`Tokenisation.read_document`), if known.
        raised_by: which of them raised each of the query's terms (`AsymmetricSparseEncoder.raised_by`), if known.

    >>> query = csr_array(np.array([[0.0, 2.0, 1.0]]))
    >>> [(term.label, term.share) for term in term_shares(query, [0.5, 3.0], ["song", "film"], read=[1])]
    [('(film)', 3.0), ('song', 1.0)]
    """
    held = None if read is None else set(np.asarray(read).tolist())
    terms = zip(query.indices.tolist(), tokens, query.data.tolist(), map(float, weights), strict=True)
    shares = []
    for place, (dim, token, query_weight, weight) in enumerate(terms):
        in_text = None if held is None else dim in held
        raised = raised_by[place] if raised_by is not None and weight else None
        shares.append(TermShare(dim, token, query_weight, weight, in_text, raised))
    return sorted(shares, key=lambda term: (-term.share, term.dim))
