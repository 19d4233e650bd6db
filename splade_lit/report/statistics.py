"""Which systems are best, and which differences are more than chance: pure functions."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import stats

from splade_lit.evaluation.per_query import QueryFigures

RESAMPLES = 9999
ALPHA = 0.05
_SEED = 0

Key = tuple[str, str]
"""Task and query id."""


def pareto_front(costs: Sequence[float | None], qualities: Sequence[float | None]) -> list[bool]:
    """Which systems no other one beats: none costs at most as much, is at least as good, and is better in one of both.

    Systems without one of the two figures are not on the front; equal systems are on it together.

    >>> pareto_front([10, 20, 20, 30, None], [0.3, 0.5, 0.4, 0.5, 0.9])
    [True, True, False, False, False]
    """
    points = list(zip(costs, qualities, strict=True))
    return [
        cost is not None
        and quality is not None
        and not any(
            c is not None and q is not None and c <= cost and q >= quality and (c < cost or q > quality)
            for c, q in points
        )
        for cost, quality in points
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """P values for all hypotheses of a family together, by the step-down procedure of Holm (1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


@dataclass(frozen=True)
class Difference:
    """What `first` has above `second`, over the queries that both were asked.

    Attributes:
        first: name of a system.
        second: name of another one.
        keys: the queries.
        queries: their texts.
        values: difference of each query.
        mean: of the differences.
        interval: where the mean lies with a confidence of 95 %, by Student's t; None for fewer than two queries.
        p_t: of the paired t-test, two-sided.
        p_random: of the randomisation test, two-sided.
        holm_t: the same, all pairs together.
        holm_random: the same, all pairs together.
    """

    first: str
    second: str
    keys: list[Key]
    queries: list[str]
    values: np.ndarray
    mean: float
    interval: tuple[float, float] | None
    p_t: float | None
    p_random: float | None
    holm_t: float | None = None
    holm_random: float | None = None

    @property
    def wins(self) -> int:
        """Queries at which `first` is better."""
        return int((self.values > 0).sum())

    @property
    def losses(self) -> int:
        """Queries at which `second` is better."""
        return int((self.values < 0).sum())

    @property
    def ties(self) -> int:
        """Queries at which both are equally good."""
        return len(self.values) - self.wins - self.losses

    @property
    def significant(self) -> bool:
        """Whether the randomisation test, corrected by Holm, has p below 0.05."""
        return self.holm_random is not None and self.holm_random < ALPHA

    def extremes(self, count: int) -> tuple[list[int], list[int]]:
        """Rows of the largest wins and of the largest losses, the largest first."""
        order = np.argsort(-self.values, kind="stable").tolist()
        return (
            [row for row in order[:count] if self.values[row] > 0],
            [row for row in order[::-1][:count] if self.values[row] < 0],
        )


def differences(systems: Mapping[str, Sequence[QueryFigures]], tasks: frozenset[str], metric: str) -> list[Difference]:
    """All pairs of systems with queries in common; the better one of a pair comes first.

    Args:
        systems: name to figures of queries.
        tasks: those that count.
        metric: which figure.
    """
    figures = {name: _by_query(each, tasks, metric) for name, each in systems.items()}
    texts = {key: text for each in systems.values() for key, text in _texts(each).items()}
    pairs = [
        _difference(first, second, figures[first], figures[second], texts)
        for first, second in combinations(figures, 2)
        if figures[first].keys() & figures[second].keys()
    ]
    return _corrected(pairs)


def paired_tests(values: np.ndarray) -> tuple[float | None, float | None]:
    """P values of two-sided tests that paired differences have mean 0; None for fewer than two.

    Args:
        values: the differences.

    Returns:
        That of Student's paired t-test, and that of Fisher's randomisation test: signs of the differences are flipped
        by chance 9,999 times, or in all ways where there are fewer.
    """
    if len(values) < 2:
        return None, None
    if not values.any():
        return 1.0, 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all differences equal: t is infinite, p is 0
        p_t = float(stats.ttest_1samp(values, 0.0).pvalue)
    random = stats.permutation_test(
        (values,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=500,
        rng=np.random.default_rng(_SEED),
    )
    return p_t, float(random.pvalue)


def _difference(
    first: str, second: str, ours: dict[Key, float], theirs: dict[Key, float], texts: dict[Key, str]
) -> Difference:
    keys = [key for key in ours if key in theirs]
    values = np.array([ours[key] - theirs[key] for key in keys])
    if values.mean() < 0:
        first, second, values = second, first, -values
    p_t, p_random = paired_tests(values)
    interval = None
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        interval = (float(values.mean()) - half, float(values.mean()) + half)
    return Difference(
        first, second, keys, [texts[key] for key in keys], values, float(values.mean()), interval, p_t, p_random
    )


def _corrected(pairs: list[Difference]) -> list[Difference]:
    tested = [pair for pair in pairs if pair.p_t is not None]
    by_t = holm([pair.p_t for pair in tested if pair.p_t is not None])
    by_random = holm([pair.p_random for pair in tested if pair.p_random is not None])
    done = {
        (pair.first, pair.second): replace(pair, holm_t=t, holm_random=random)
        for pair, t, random in zip(tested, by_t, by_random, strict=True)
    }
    return [done.get((pair.first, pair.second), pair) for pair in pairs]


def _by_query(figures: Sequence[QueryFigures], tasks: frozenset[str], metric: str) -> dict[Key, float]:
    return {
        (one.task, query_id): value
        for one in figures
        if one.task in tasks
        for query_id, value in zip(one.query_ids, one.metrics[metric], strict=True)
    }


def _texts(figures: Sequence[QueryFigures]) -> dict[Key, str]:
    return {
        (one.task, query_id): text for one in figures for query_id, text in zip(one.query_ids, one.queries, strict=True)
    }
