"""Limits on the weights of a vector that is made for search; training does not see them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Pruning:
    """Which weights of queries and documents are kept: those that every limit lets stay.

    Each limit looks at the whole vector, so that their order makes no difference.

    Attributes:
        max_query_active_dims: so many weights of a query, the largest in absolute value; all if None.
        max_document_active_dims: so many weights of a document, the largest; all if None.
        min_document_weight: weights of a document that are at least this; all if 0.
        min_document_weight_share: weights of a document that are at least this share (0 to 1) of its largest one; all
            if 0. OpenSearch calls it pruning by `max_ratio`.
    """

    max_query_active_dims: int | None = None
    max_document_active_dims: int | None = None
    min_document_weight: float = 0.0
    min_document_weight_share: float = 0.0

    def changed(self, given: Mapping[str, Any]) -> "Pruning":
        """With what is given under the names of the attributes, among other things; None changes nothing, 0 lifts.

        >>> given = {"max_document_active_dims": 0, "min_document_weight": 0.1}
        >>> Pruning(max_document_active_dims=64).changed(given) == Pruning(min_document_weight=0.1)
        True
        """
        names = [field.name for field in fields(self) if given.get(field.name) is not None]
        return replace(self, **{name: given[name] or getattr(Pruning(), name) for name in names})

    def capped(self, max_active_dims: int | None) -> "Pruning":
        """With a cap for both sides where they have none of their own; None changes nothing."""
        return replace(
            self,
            max_query_active_dims=self.max_query_active_dims or max_active_dims,
            max_document_active_dims=self.max_document_active_dims or max_active_dims,
        )

    @property
    def max_active_dims(self) -> int | None:
        """The cap of both sides, None where there is none or they differ."""
        document = self.max_document_active_dims
        return document if document == self.max_query_active_dims else None

    @property
    def of_documents(self) -> "Pruning":
        """The limits of documents alone."""
        return replace(self, max_query_active_dims=None)

    @property
    def of_queries(self) -> "Pruning":
        """The limit of queries alone."""
        return Pruning(max_query_active_dims=self.max_query_active_dims)

    @property
    def documents_keep(self) -> str:
        """The limits of documents in words.

        >>> Pruning(max_document_active_dims=64, min_document_weight_share=0.1).documents_keep
        'at most 64 dims, weights from 10% of the largest'
        >>> Pruning().documents_keep
        'all'
        """
        cap, least, share = self.max_document_active_dims, self.min_document_weight, self.min_document_weight_share
        parts = [f"at most {cap:,} dims"] if cap else []
        parts += [f"weights from {least:g}"] if least else []
        parts += [f"weights from {100 * share:g}% of the largest"] if share else []
        return ", ".join(parts) or "all"

    @property
    def saved(self) -> dict[str, Any]:
        """The entries of config_sentence_transformers.json.

        sentence-transformers knows one cap for both sides, `max_active_dims`: it gets that of documents, and nothing of
        the other limits, which stand beside it under `pruning` where there is more to say.
        """
        cap, alone = self.max_document_active_dims, Pruning().capped(self.max_document_active_dims)
        entries: dict[str, Any] = {} if cap is None else {"max_active_dims": cap}
        return entries if self == alone else entries | {"pruning": asdict(self)}
