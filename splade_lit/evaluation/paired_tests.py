"""Whether two systems differ by more than chance: paired tests over the queries that both answered."""

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


@dataclass(frozen=True)
class Difference:
    """What `first` has above `second`, over the queries that both were asked.

    Attributes:
        first: name of the better system.
        second: name of the other one.
        keys: the queries.
        queries: their texts.
        values: difference of each query.
        p_t: of the paired t-test, two-sided, corrected by Holm for all pairs together.
        p_random: of the randomisation test, likewise.
    """

    first: str
    second: str
    keys: list[Key]
    queries: list[str]
    values: np.ndarray
    p_t: float
    p_random: float

    @property
    def mean(self) -> float:
        """Mean of the differences."""
        return float(self.values.mean())

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the mean lies with a confidence of 95 %, by Student's t; None for fewer than two queries."""
        if len(self.values) < 2:
            return None
        half = float(stats.t.ppf(0.975, len(self.values) - 1) * stats.sem(self.values))
        return self.mean - half, self.mean + half

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
        return self.p_random < ALPHA

    @property
    def verdict(self) -> str:
        """Whether the difference is more than chance, with its p."""
        return f"{'' if self.significant else 'not '}more than chance (p {p_value(self.p_random)})"

    def extremes(self, count: int) -> tuple[list[int], list[int]]:
        """Rows of the largest wins and of the largest losses, the largest first."""
        order = np.argsort(-self.values, kind="stable").tolist()
        return (
            [row for row in order[:count] if self.values[row] > 0],
            [row for row in order[::-1][:count] if self.values[row] < 0],
        )


def differences(systems: Mapping[str, Sequence[QueryFigures]], tasks: frozenset[str], metric: str) -> list[Difference]:
    """All pairs of systems (by name) with queries in common in these tasks; the better one of a pair comes first."""
    queries = {name: _by_query(each, tasks, metric) for name, each in systems.items()}
    pairs = []
    for first, second in combinations(queries, 2):
        if keys := [key for key in queries[first] if key in queries[second]]:
            texts = [queries[first][key][0] for key in keys]
            values = np.array([queries[first][key][1] - queries[second][key][1] for key in keys])
            names = (first, second) if values.mean() >= 0 else (second, first)
            values = values if values.mean() >= 0 else -values
            pairs.append(Difference(*names, keys, texts, values, *paired_tests(values)))
    corrected = zip(pairs, holm([pair.p_t for pair in pairs]), holm([pair.p_random for pair in pairs]), strict=True)
    return [replace(pair, p_t=p_t, p_random=p_random) for pair, p_t, p_random in corrected]


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


def paired_tests(values: np.ndarray) -> tuple[float, float]:
    """P values of two-sided tests that paired differences have mean 0; 1 for fewer than two, which tell nothing.

    First that of Student's paired t-test, then that of Fisher's randomisation test: signs of the differences are
    flipped by chance 9,999 times, or in all ways where there are fewer.
    """
    if len(values) < 2 or not values.any():
        return 1.0, 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all differences equal: t is infinite, p is 0
        p_t = float(stats.ttest_1samp(values, 0.0).pvalue)
    rng = np.random.default_rng(_SEED)
    settings = {"permutation_type": "samples", "n_resamples": RESAMPLES, "batch": 500, "rng": rng}
    return p_t, float(stats.permutation_test((values,), np.mean, **settings).pvalue)


def p_value(p: float) -> str:
    """A p value as text.

    >>> p_value(0.00012), p_value(0.2), p_value(0.0)
    ('0.0001', '0.2000', '< 0.0001')
    """
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def _by_query(figures: Sequence[QueryFigures], tasks: frozenset[str], metric: str) -> dict[Key, tuple[str, float]]:
    """Text and figure of each query."""
    return {
        (one.task, query_id): (text, value)
        for one in figures
        if one.task in tasks and metric in one.metrics
        for query_id, text, value in zip(one.query_ids, one.queries, one.metrics[metric], strict=True)
    }
