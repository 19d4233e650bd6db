"""Why a document is found: which terms made a score, and which one decided between a hit and its rival."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from splade_lit.analysis.encoded import EncodedTask
from splade_lit.core.tokenisation import tokenize_documents
from splade_lit.data.tasks import RetrievalTask
from splade_lit.evaluation.metrics import DEPTH
from splade_lit.evaluation.paired_tests import Difference, differences
from splade_lit.evaluation.per_query import query_figures
from splade_lit.evaluation.results import TaskResult

# Why we win: what the deciding term is in the relevant document.
EXPANSION = "expansion: a term that the model has added"
WEIGHTS = "weights: a term of the text, weighed better"
# Why BM25 wins: what the deciding term is in the relevant document, or else in its rival.
CUT_OFF = "cut off: a term behind the token limit"
DROPPED = "dropped: a term of the text without weight"
MISSING = "missing vocabulary: a term that neither text nor model has"
RIVAL_EXPANSION = "rival's expansion: a term added to a wrong document"
RIVAL_WEIGHTS = "rival's weights: a term of a wrong document, weighed more"
NO_TERM = "no term decides"
CAUSES = (EXPANSION, WEIGHTS, CUT_OFF, DROPPED, MISSING, RIVAL_EXPANSION, RIVAL_WEIGHTS, NO_TERM)

_NO_LIMIT = 1 << 20


@dataclass(frozen=True)
class TermShare:
    """What a term of a query adds to the score of a document.

    Attributes:
        dim: of the term.
        token: the term.
        query_weight: its weight in the query.
        document_weight: its weight in the document, 0 where it is not active.
        in_text: whether the document's text holds it, as far as the model reads.
    """

    dim: int
    token: str
    query_weight: float
    document_weight: float
    in_text: bool

    @property
    def share(self) -> float:
        """Its part of the score."""
        return self.query_weight * self.document_weight


def term_shares(encoded: EncodedTask, tokens: Sequence[str], query: int, document: int) -> list[TermShare]:
    """All terms of a query with what they add to the score of a document, the largest share first.

    Args:
        encoded: the task.
        tokens: the token of each dim.
        query: row of the query.
        document: row of the document.
    """
    row = encoded.queries[[query]]
    weights = encoded.documents[[document]].toarray()[0]
    held = set(encoded.tokenised.documents[document].tolist())
    shares = [
        TermShare(dim, tokens[dim], float(weight), float(weights[dim]), dim in held)
        for dim, weight in zip(row.indices.tolist(), row.data.tolist(), strict=True)
    ]
    return sorted(shares, key=lambda term: (-term.share, term.dim))


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        document_id: which one.
        score: its score.
        relevant: whether it answers the query.
        terms: the terms that made the score, the largest share first; those in parentheses are expansions.
    """

    document_id: str
    score: float
    relevant: bool
    terms: str


def hits(encoded: EncodedTask, result: TaskResult, tokens: Sequence[str], query_id: str, k: int = 5) -> list[Hit]:
    """The best documents of a query with the terms that made their scores.

    Args:
        encoded: the task.
        result: its evaluation.
        tokens: the token of each dim.
        query_id: which query.
        k: how many documents at most; those that share no term are left out.
    """
    query = encoded.tokenised.query_ids.index(query_id)
    rows = {document_id: row for row, document_id in enumerate(encoded.document_ids)}
    found = []
    for document_id, score in list(result.run[query_id].items())[:k]:
        shares = [term for term in term_shares(encoded, tokens, query, rows[document_id]) if term.share]
        terms = [f"{term.token if term.in_text else f'({term.token})'} {term.share:.2f}" for term in shares]
        if shares:
            found.append(Hit(document_id, score, _is_relevant(encoded.task, query_id, document_id), " + ".join(terms)))
    return found


def against_bm25(encoded: EncodedTask, ours: TaskResult, bm25: TaskResult, name: str = "ours") -> Difference:
    """What one of us has above the other in nDCG@10, query by query, as `python -m splade_lit.compare` tests it.

    Args:
        encoded: the task.
        ours: our evaluation of it.
        bm25: BM25's.
        name: what to call us.
    """
    figures = {side: [query_figures(encoded.task, one.rank_metrics)] for side, one in ((name, ours), ("BM25", bm25))}
    (difference,) = differences(figures, frozenset({encoded.task.name}), "ndcg@10")
    return difference


@dataclass(frozen=True)
class Outcome:
    """A query that we and BM25 rank differently well.

    Attributes:
        query_id: which query.
        text: the query.
        ours: our nDCG@10.
        bm25: BM25's nDCG@10.
        relevant: the relevant document whose ranks differ most.
        rival: the best document that is not relevant, in the ranking that loses; None if there is none.
        term: the term that decides: of all, the one that takes the largest part in the difference of the two scores.
        cause: what that term is, one of `CAUSES`.
    """

    query_id: str
    text: str
    ours: float
    bm25: float
    relevant: str
    rival: str | None
    term: str | None
    cause: str

    @property
    def gain(self) -> float:
        """By how much we are better."""
        return self.ours - self.bm25


def outcomes(
    encoded: EncodedTask,
    ours: TaskResult,
    bm25: TaskResult,
    tokens: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Outcome]:
    """The queries that we and BM25 rank differently well, our largest win first, each with the term that decides.

    Args:
        encoded: the task.
        ours: our evaluation of it.
        bm25: BM25's.
        tokens: the token of each dim.
        tokenizer: to read what the model does not of texts beyond its limit.
    """
    rows = {document_id: row for row, document_id in enumerate(encoded.document_ids)}
    query_rows = {query_id: row for row, query_id in enumerate(encoded.tokenised.query_ids)}
    bm25_ndcg = dict(zip(bm25.rank_metrics.query_ids, bm25.rank_metrics.per_query["ndcg@10"].tolist(), strict=True))
    found = []
    for query_id, ndcg in zip(
        ours.rank_metrics.query_ids, ours.rank_metrics.per_query["ndcg@10"].tolist(), strict=True
    ):
        winning, losing = (ours, bm25) if ndcg > bm25_ndcg[query_id] else (bm25, ours)
        relevant = _most_moved(encoded, query_id, winning.run[query_id], losing.run[query_id])
        if ndcg == bm25_ndcg[query_id] or relevant is None:
            continue
        rival = next((one for one in losing.run[query_id] if not _is_relevant(encoded.task, query_id, one)), None)
        term, cause = None, NO_TERM
        if rival is not None:
            query = query_rows[query_id]
            pair = [term_shares(encoded, tokens, query, rows[one]) for one in (relevant, rival)]
            term, cause = _win(*pair) if winning is ours else _loss(*pair)
            if cause == MISSING and term in _beyond_limit(encoded, rows[relevant], tokens, tokenizer):
                cause = CUT_OFF
        found.append(
            Outcome(query_id, encoded.task.queries[query_id], ndcg, bm25_ndcg[query_id], relevant, rival, term, cause)
        )
    return sorted(found, key=lambda outcome: (-outcome.gain, outcome.query_id))


def _win(relevant: Sequence[TermShare], rival: Sequence[TermShare]) -> tuple[str | None, str]:
    """The term that puts the relevant document above its rival, and why."""
    term, _ = _deciding(relevant, rival)
    if term is None:
        return None, NO_TERM
    return term.token, WEIGHTS if term.in_text else EXPANSION


def _loss(relevant: Sequence[TermShare], rival: Sequence[TermShare]) -> tuple[str | None, str]:
    """The term that puts the rival above the relevant document, and why."""
    term, other = _deciding(rival, relevant)
    if term is None or other is None:
        return None, NO_TERM
    if other.document_weight == 0 and other.in_text:
        return term.token, DROPPED
    if not term.in_text:
        return term.token, RIVAL_EXPANSION
    return term.token, RIVAL_WEIGHTS if other.document_weight else MISSING


def _deciding(upper: Sequence[TermShare], lower: Sequence[TermShare]) -> tuple[TermShare | None, TermShare | None]:
    """The term whose share is larger by most in the upper document, in both; None if it is larger in none."""
    below = {term.dim: term for term in lower}
    best = max(upper, key=lambda term: term.share - below[term.dim].share, default=None)
    if best is None or best.share <= below[best.dim].share:
        return None, None
    return best, below[best.dim]


def _most_moved(
    encoded: EncodedTask, query_id: str, winning: Mapping[str, float], losing: Mapping[str, float]
) -> str | None:
    """The relevant document that the winning ranking has further up by most; None if the corpus has none."""
    ranks = [{document_id: rank for rank, document_id in enumerate(ranking)} for ranking in (winning, losing)]
    relevant = [
        document_id
        for document_id, grade in encoded.task.qrels[query_id].items()
        if grade > 0 and document_id in encoded.task.corpus
    ]
    return max(relevant, key=lambda one: ranks[1].get(one, DEPTH) - ranks[0].get(one, DEPTH), default=None)


def _is_relevant(task: RetrievalTask, query_id: str, document_id: str) -> bool:
    return task.qrels[query_id].get(document_id, 0) > 0


def _beyond_limit(
    encoded: EncodedTask, document: int, tokens: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> set[str]:
    """Tokens of a document's whole text, wherever it was cut."""
    text = encoded.task.corpus[encoded.document_ids[document]]
    (token_ids,) = tokenize_documents(tokenizer, [text], _NO_LIMIT)
    return {tokens[token_id] for token_id in token_ids.tolist()}
