"""Hits in one order for all engines: score descending, then the lower id, where an engine breaks ties as it likes.

Engines add products in orders of their own, so that scores which are equal here differ there by a rounding error.
Scores that are as close as that are computed again, as float32 sums in the order of dims.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from splade_lit.engines.index import Hit
from splade_lit.engines.segments import best_hits

# Relative; a sum of some hundred float32 products is off by less.
_CLOSE = 2e-6
MORE = 16
"""Hits that are fetched beyond those asked for."""

Fetch = Callable[[int], Sequence[Hit]]
"""Gives so many of the best hits, in any order where scores are as good as equal; fewer if there are no more."""

Scores = Callable[[Sequence[str]], Mapping[str, float]]
"""Gives the scores of documents by id, from their weights, as far as they are still there: see `dot`."""


def settled(fetch: Fetch, scores: Scores, k: int, close: float = _CLOSE) -> list[Hit]:
    """The best k hits in order, whatever order the engine has among scores that are as good as equal.

    Args:
        fetch: asks the engine.
        scores: computes scores again where two are close; not called where none are.
        k: how many.
        close: relative difference of scores that the engine may have got wrong.
    """
    limit = k + MORE
    while True:
        hits = best_hits([hit for hit in fetch(limit) if hit.score > 0], limit)
        # Beyond the last of those fetched others may be as good as the k-th.
        if len(hits) < limit or hits[k - 1].score * (1 - close) > hits[-1].score:
            break
        limit *= 4
    in_doubt = _in_doubt([hit.score for hit in hits], k, close)
    if in_doubt:
        exact = scores([hits[place].id for place in in_doubt])
        for place in in_doubt:
            hits[place] = Hit(hits[place].id, exact.get(hits[place].id, 0.0))
        hits = [hit for hit in hits if hit.score > 0]  # some may have been deleted meanwhile
    return best_hits(hits, k)


def dot(
    dims: np.ndarray, weights: Float32[np.ndarray, " dims"], others: np.ndarray, values: Float32[np.ndarray, " others"]
) -> float:
    """The product of two vectors, a float32 sum in the order of dims; those of both are ascending."""
    score = np.float32(0)
    _, here, there = np.intersect1d(dims, others, assume_unique=True, return_indices=True)
    for product in weights[here] * values[there]:
        score += product
    return float(score)


def _in_doubt(scores: Sequence[float], k: int, close: float) -> list[int]:
    """The places that a neighbour is close to, up to the last one that could be among the best k."""
    same = [scores[place] * (1 - close) <= scores[place + 1] for place in range(len(scores) - 1)]
    doubted = [place for place in range(len(scores)) if any(same[max(place - 1, 0) : place + 1])]
    end = k
    while end < len(scores) and same[end - 1]:
        end += 1
    return [place for place in doubted if place < end]
