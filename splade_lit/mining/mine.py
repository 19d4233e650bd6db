"""Hard negatives for pairs: a block of pairs at a time, from a miner's ranking to rows of a data set."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32, Int64

from splade_lit.core.progress import WorkProgress
from splade_lit.mining.candidates import Candidates
from splade_lit.mining.miners import Miner, Scorer
from splade_lit.mining.selection import Rules, drawn, in_ranks, refused

BLOCK = 512  # pairs whose negatives are looked for together
_MOST_ROOM = 1_000  # documents looked at in place of a query's answers: copies of some are as many as the corpus


@dataclass(frozen=True)
class Mined:
    """The negatives of a block of pairs.

    Attributes:
        pairs: their rows.
        answers: the documents of their columns of positives, -1 for none; `answer_scores` are their scores.
        negatives: documents, highest score first, -1 where there are no more; `negative_scores` are their scores.
        written: scores of all of them, answers first, to stand in the data set in place of those.
    """

    pairs: Int64[np.ndarray, " pairs"]
    answers: Int64[np.ndarray, "pairs positives"]
    answer_scores: Float32[np.ndarray, "pairs positives"]
    negatives: Int64[np.ndarray, "pairs negatives"]
    negative_scores: Float32[np.ndarray, "pairs negatives"]
    written: Float32[np.ndarray, "pairs documents"] | None = None


@dataclass
class Counts:
    """What was looked at.

    Attributes:
        candidates: documents within the ranks.
        refused: how many of them met a condition too few, by the first such condition.
    """

    candidates: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def mine(
    candidates: Candidates,
    queries: Iterator[list[str]],
    miner: Miner,
    rules: Rules,
    teacher: Scorer | None = None,
    counts: Counts | None = None,
    written: Scorer | None = None,
) -> Iterator[Mined]:
    """The negatives of all pairs, in their order, a block at a time.

    A document that answers the query of a pair anywhere in the data is no negative of it, nor is one that is the query
    itself, nor a copy of either; of the forms of an answer that the corpus has too, the corpus's may be one. Ranks are
    those of the miner, among the others. Scores are those of the teacher, or if there is none, of the miner. Negatives
    of pairs with the same query are drawn for each pair.

    Args:
        candidates: the documents.
        queries: the queries of the pairs, `BLOCK` at a time.
        miner: finds documents.
        rules: which of them become negatives.
        teacher: scores answers and documents within the ranks, for the margins.
        counts: what was looked at is added here.
        written: scores what was found once more, in the scale to write.
    """
    counts = counts or Counts()
    with WorkProgress("mining", "pairs", len(candidates.answers)) as progress:
        start = 0
        for texts in queries:
            pairs = np.arange(start, start + len(texts))
            yield _mine_block(candidates, pairs, texts, miner, rules, teacher, counts, written)
            start += len(texts)
            progress.advance(len(texts))


def _mine_block(
    candidates: Candidates,
    pairs: np.ndarray,
    texts: list[str],
    miner: Miner,
    rules: Rules,
    teacher: Scorer | None,
    counts: Counts,
    written: Scorer | None,
) -> Mined:
    different = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    query_of = np.array([different[text] for text in texts])
    _, first = np.unique(query_of, return_index=True)
    queries = list(different)
    size = len(candidates.texts)

    owner, known = candidates.known(pairs[first])
    barred_owner, barred = candidates.barred(pairs[first])
    excluded = barred_owner * size + barred
    room = min(int(np.bincount(excluded // size, minlength=1).max()), _MOST_ROOM)
    if candidates.repeated.any():
        room += rules.last_rank  # each of them ranks beside the document that it repeats
    encoded = miner.encode(queries)
    found = miner.search(encoded, min(rules.last_rank + room, size))
    documents = found.documents.astype(np.int64)
    keys = np.arange(len(queries))[:, None] * size + documents
    is_other = ~np.isin(keys, excluded) & ~candidates.repeated[documents]
    within = in_ranks((found.scores > miner.least) & is_other, rules)

    scores, scorer, vectors = found.scores.copy(), teacher or miner, encoded
    if teacher is not None:
        vectors = teacher.encode(queries)
        rows, places = np.nonzero(within)
        scores[within] = teacher.scores(vectors, rows, documents[rows, places])
    known_scores = scorer.scores(vectors, owner, known)
    worst = np.full(len(queries), np.inf, np.float32)
    np.minimum.at(worst, owner, known_scores)

    allowed = within.copy()
    counts.candidates += int(within[query_of].sum())
    for name, bad in refused(scores, worst, rules):
        counts.refused[name] += int((allowed & bad)[query_of].sum())
        allowed &= ~bad

    rng = np.random.default_rng((rules.seed, int(pairs[0])))
    places = drawn(scores[query_of], allowed[query_of], rules, rng)
    there = places >= 0
    negatives = np.where(there, np.take_along_axis(documents[query_of], places, axis=1), -1)
    negative_scores = np.where(there, np.take_along_axis(scores[query_of], places, axis=1), np.float32(np.nan))
    answers = candidates.answers[pairs]
    at = np.searchsorted(owner * size + known, query_of[:, None] * size + answers).clip(max=len(known) - 1)
    answer_scores = np.where(answers >= 0, known_scores[at], np.float32(np.nan))
    mined = Mined(pairs, answers, answer_scores, negatives, negative_scores)
    if written is None:
        return mined
    row_documents = np.concatenate([answers, negatives], axis=1)
    there = row_documents >= 0
    rescored = np.full(there.shape, np.nan, np.float32)
    rescored[there] = written.scores(written.encode(queries), query_of[np.nonzero(there)[0]], row_documents[there])
    return replace(mined, written=rescored)
