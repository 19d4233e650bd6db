"""Why a document is found: which terms made a score, and which one decided between a hit and its rival."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from splade_lit.analysis.encoded import EncodedTask
from splade_lit.core.tokenisation import tokenize_documents
from splade_lit.encoder.explain import TermShare
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
class Hit:
    """A document that was found.

    `terms` are those that made its score, the largest share first; expansions are in parentheses.
    """

    document_id: str
    score: float
    relevant: bool
    terms: str


def hits(encoded: EncodedTask, result: TaskResult, tokens: Sequence[str], query_id: str, k: int = 5) -> list[Hit]:
    """The first k documents of a query with the terms that made their scores; those that share no term are left out."""
    query = encoded.tokenised.query_ids.index(query_id)
    found = []
    for document_id, score in list(result.run[query_id].items())[:k]:
        document = encoded.document_ids.index(document_id)
        shares = [term for term in encoded.explain(tokens, query, document) if term.share]
        terms = [f"{term.label} {term.share:.2f}" for term in shares]
        if shares:
            found.append(Hit(document_id, score, encoded.is_relevant(query_id, document_id), " + ".join(terms)))
    return found


def against_bm25(encoded: EncodedTask, ours: TaskResult, bm25: TaskResult, name: str = "ours") -> Difference:
    """What we (`name`) or BM25 have above the other in nDCG@10, query by query, as `splade_lit.compare` tests it."""
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
        term: the term that decides: its part in the difference of the two scores is the largest.
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
    encoded: EncodedTask, ours: TaskResult, bm25: TaskResult, tokens: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[Outcome]:
    """The queries that we and BM25 rank differently well, our largest win first, each with the term that decides.

    The tokenizer is there to read what is beyond the model's limit.
    """
    rows = {document_id: row for row, document_id in enumerate(encoded.document_ids)}
    figures = [one.rank_metrics.per_query["ndcg@10"].tolist() for one in (ours, bm25)]
    found = []
    for query, (query_id, our_ndcg, bm25_ndcg) in enumerate(zip(encoded.tokenised.query_ids, *figures, strict=True)):
        winning, losing = (ours, bm25) if our_ndcg > bm25_ndcg else (bm25, ours)
        relevant = _most_moved(encoded, query_id, winning.run[query_id], losing.run[query_id])
        if our_ndcg == bm25_ndcg or relevant is None:
            continue
        rival = next((one for one in losing.run[query_id] if not encoded.is_relevant(query_id, one)), None)
        term, cause = None, NO_TERM
        if rival is not None:
            shares = (encoded.explain(tokens, query, rows[one]) for one in (relevant, rival))
            term, cause = _deciding(*shares, is_win=winning is ours)
            if cause == MISSING:
                (whole,) = tokenize_documents(tokenizer, [encoded.task.corpus[relevant]], _NO_LIMIT)
                cause = CUT_OFF if term in {tokens[token_id] for token_id in whole.tolist()} else MISSING
        text = encoded.task.queries[query_id]
        found.append(Outcome(query_id, text, our_ndcg, bm25_ndcg, relevant, rival, term, cause))
    return sorted(found, key=lambda outcome: (-outcome.gain, outcome.query_id))


def _deciding(relevant: Sequence[TermShare], rival: Sequence[TermShare], *, is_win: bool) -> tuple[str | None, str]:
    """The term that puts the relevant document above its rival, or at a loss below it, and the cause.

    It is the one whose share in the upper document is larger by most.
    """
    upper, lower = (relevant, rival) if is_win else (rival, relevant)
    below = {term.dim: term for term in lower}
    term = max(upper, key=lambda term: term.share - below[term.dim].share, default=None)
    if term is None or term.share <= below[term.dim].share:
        return None, NO_TERM
    other = below[term.dim]
    if is_win:
        cause = WEIGHTS if term.in_text else EXPANSION
    elif other.document_weight == 0 and other.in_text:
        cause = DROPPED
    elif not term.in_text:
        cause = RIVAL_EXPANSION
    else:
        cause = RIVAL_WEIGHTS if other.document_weight else MISSING
    return term.token, cause


def _most_moved(
    encoded: EncodedTask, query_id: str, winning: Mapping[str, float], losing: Mapping[str, float]
) -> str | None:
    """The relevant document that the winning ranking has further up by most; None if the corpus has none."""
    up, down = ({document_id: rank for rank, document_id in enumerate(ranking)} for ranking in (winning, losing))
    relevant = [
        one for one in encoded.task.qrels[query_id] if encoded.is_relevant(query_id, one) and one in encoded.task.corpus
    ]
    return max(relevant, key=lambda one: down.get(one, DEPTH) - up.get(one, DEPTH), default=None)
