"""From systems to what the JSON API says."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from splade_lit.core.text import Mender
from splade_lit.core.tokenisation import ReadText
from splade_lit.encoder.explain import ReadToken, TermShare, term_shares
from splade_lit.web import records
from splade_lit.web.snippets import Place, excerpt, places
from splade_lit.web.systems import MAX_TEXT_CHARACTERS, System

if TYPE_CHECKING:
    from splade_lit.web.judged import JudgedQueries

MAX_QUERY_CHARACTERS = 2000
MAX_ID_CHARACTERS = 2000
MAX_TOP = 100
_WHOLE_DEPTH = 100  # ranks without a cap that are looked at
_EXCERPT_CHARACTERS = 300
_EXCERPT_PLACES = 1000  # more than an excerpt looks at
_MAX_DIMS = 1000
_EXAMPLES = 300


@dataclass(frozen=True)
class Answers:
    """Answers of one server; any number of threads may ask.

    Attributes:
        systems: what is searched.
        judged: a task, if there is one.
    """

    systems: Sequence[System]
    judged: "JudgedQueries | None" = None

    @cached_property
    def site(self) -> records.Site:
        """What there is."""
        judged = self.judged
        return records.Site(
            systems=[self._facts(number) for number in range(len(self.systems))],
            task=judged.task.name if judged else None,
            queries=[one for one in judged.queries if len(one) <= MAX_QUERY_CHARACTERS][:_EXAMPLES] if judged else [],
            num_queries=len(judged.queries) if judged else 0,
            max_query_characters=MAX_QUERY_CHARACTERS,
            max_top=MAX_TOP,
        )

    def _facts(self, number: int) -> records.SystemFacts:
        system = self.systems[number]
        postings = system.num_postings()
        return records.SystemFacts(
            number=number,
            name=system.name,
            kind=system.kind,
            num_documents=system.num_documents,
            active_dims=None if postings is None else postings / max(system.num_documents, 1),
            can_prune=system.can_prune,
            knows_tokens=system.knows_tokens,
        )

    def search(self, query: str, number: int, top: int, cap: int | None) -> records.Answer:
        """The hits of a query; with a cap also what it changes."""
        system, query = self.systems[number], _clean(query)
        cap = cap if system.can_prune else None
        begun = time.perf_counter()
        vector = system.encode(query)
        # One more where the query's own document does not count.
        ranking = system.search(vector, top + bool(self.judged and self.judged.leaves_out(query)), cap)
        found = ranking[:top]
        took = time.perf_counter() - begun
        whole = found if cap is None else system.search(vector, max(_WHOLE_DEPTH, top))
        ranks = {hit.id: rank for rank, hit in enumerate(whole, start=1)}
        there = {hit.id for hit in found}
        grades = self.judged.grades(query) if self.judged else {}
        tokens = system.tokens(vector.indices)
        hits = []
        for rank, hit in enumerate(found, start=1):
            text = system.text(hit.id)
            read = None if text is None else system.read(text)
            weights = system.weights(hit.id, vector.indices.tolist(), cap)
            shares = term_shares(vector, weights, tokens, _held(system, read, vector.indices))
            terms = [term for term in shares if term.share]
            marks = [] if read is None else places(read, terms, _EXCERPT_PLACES)
            hits.append(
                records.FoundDocument(
                    rank=rank,
                    id=_clean(hit.id),
                    score=hit.score,
                    whole_rank=None if cap is None else ranks.get(hit.id),
                    grade=grades.get(hit.id),
                    excerpt=None if text is None else _excerpt(text, marks, terms),
                    terms=[_term(term) for term in terms],
                )
            )
        weights_of_query = sorted(zip(vector.data.tolist(), tokens, strict=True), key=lambda pair: -pair[0])
        return records.Answer(
            query=query,
            system=number,
            cap=cap,
            search_ms=1000 * took,
            query_terms=[records.QueryTerm(token=token, weight=weight) for weight, token in weights_of_query],
            hits=hits,
            left=[
                records.LeftDocument(id=_clean(hit.id), whole_rank=ranks[hit.id])
                for hit in whole[:top]
                if hit.id not in there
            ],
            ndcg=self.judged.ndcg_of(query, ranking) if self.judged and top >= 10 else None,
        )

    def document(self, id: str, query: str, number: int, cap: int | None) -> records.Document | None:
        """A document in full with its vector; None if there is none of this id."""
        system, query = self.systems[number], _clean(query)
        row = system.vector(id, cap if system.can_prune else None)
        text = system.text(id)
        if text is None and not row.nnz:
            return None
        vector = system.encode(query)
        read = None if text is None else system.read(text)
        held = _held(system, read, row.indices)
        order = np.argsort(-row.data, kind="stable")[:_MAX_DIMS]
        dims = row.indices[order]
        asked = np.concatenate([dims, vector.indices]).astype(np.int64)
        raised = system.raised_by(text, asked) if text is not None and len(asked) else None
        raised = raised or [None] * len(asked)
        weights = row.toarray()[0, vector.indices]
        shares = term_shares(vector, weights, system.tokens(vector.indices), held, raised[len(dims) :])
        there = None if held is None else set(held.tolist())
        start, end = (0, None) if text is None else system.read_part(text)
        shown = "" if text is None else text[:MAX_TEXT_CHARACTERS]
        marks = [] if read is None else [place for place in places(read, shares) if place.end <= len(shown)]
        found = zip(dims.tolist(), system.tokens(dims), row.data[order].tolist(), raised, strict=False)
        return records.Document(
            id=_clean(id),
            system=number,
            text=None if text is None else _clean(shown),
            is_whole=text is None or len(shown) == len(text),
            read_from=start,
            read_until=end,
            score=sum(term.share for term in shares),
            marks=[records.Mark(**place._asdict()) for place in marks],
            terms=[records.RaisedTerm(**_term(term).model_dump(), raised_by=_token(term.raised_by)) for term in shares],
            dims=[
                records.Dim(
                    token=token, weight=weight, in_text=None if there is None else dim in there, raised_by=_token(one)
                )
                for dim, token, weight, one in found
            ],
            num_dims=int(row.nnz),
        )

    def pruning(self, number: int) -> records.PruningCurve:
        """What each cap leaves; of a system that cannot prune, what it has."""
        system, judged = self.systems[number], self.judged
        points = []
        for cap in [*system.caps(), None]:
            postings = system.num_postings(cap)
            points.append(
                records.PruningPoint(
                    cap=cap,
                    active_dims=None if postings is None else postings / max(system.num_documents, 1),
                    num_postings=postings,
                    num_bytes=system.posting_bytes(cap),
                    ndcg=judged.ndcg(number, cap) if judged else None,
                )
            )
        return records.PruningCurve(points=points, is_complete=judged is None or judged.is_complete(number))


def _held(system: System, read: ReadText | None, active: np.ndarray) -> np.ndarray | None:
    """The dims that a text holds: for BM25 all that are active, also beyond what is read of a long text."""
    if system.kind == "bm25":
        return active
    return None if read is None else read.ids


def _excerpt(text: str, found: Sequence[Place], terms: Sequence[TermShare]) -> records.Excerpt:
    start, end = excerpt(text, found, terms, _EXCERPT_CHARACTERS)
    marks = [
        records.Mark(start=place.start - start, end=place.end - start, term=place.term)
        for place in found
        if start <= place.start and place.end <= end
    ]
    return records.Excerpt(text=_clean(text[start:end]), is_start=start == 0, is_end=end == len(text), marks=marks)


def _term(term: TermShare) -> records.Term:
    return records.Term(
        token=_clean(term.token),
        query_weight=term.query_weight,
        document_weight=term.document_weight,
        share=term.share,
        in_text=term.in_text,
    )


def _token(token: ReadToken | None) -> records.RaisingToken | None:
    return None if token is None else records.RaisingToken(**token._asdict())


def _clean(text: str) -> str:
    """The text in valid Unicode, of as many characters: JSON has no other."""
    return Mender()(text)
