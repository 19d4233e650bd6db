"""Systems side by side: on which set, by which figure, and what is to be said about them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from splade_lit.core.errors import UserError
from splade_lit.evaluation.paired_tests import Difference, differences
from splade_lit.evaluation.per_query import METRICS
from splade_lit.report.measure import Searched
from splade_lit.report.system import System, is_group, members, sets_of

METRIC_NAMES = dict(zip(METRICS, ("nDCG@10", "MRR@10", "recall@10", "MAP@100"), strict=True))


@dataclass(frozen=True)
class Quantity:
    """A cost of a system: less is better.

    Attributes:
        name: short, for the head of a column.
        title: how the title of a chart begins.
        unit: of a value in a sentence.
        label: with the unit, for an axis.
        digits: decimals shown.
        value: of a system on a set, None if not known.
    """

    name: str
    title: str
    unit: str
    label: str
    digits: int
    value: Callable[[System, str], float | None]

    def show(self, value: float | None) -> str:
        """The value as text."""
        return "-" if value is None else f"{value:,.{self.digits}f}"


def _index_mb(system: System, one: str) -> float | None:
    return system.search.index_bytes / 1e6 if system.search else None


def _query_ms(system: System, one: str) -> float | None:
    return system.search.median_ms if system.search else None


def _minutes(system: System, one: str) -> float | None:
    seconds = system.run.training_seconds if system.run else None
    return None if seconds is None else seconds / 60


def _grams(system: System, one: str) -> float | None:
    return 1000 * system.run.footprint.total.emissions_kg if system.run and system.run.footprint else None


def _figure(name: str) -> Callable[[System, str], float | None]:
    return lambda system, one: system.figure(one, name)


QUERY_DIMS = Quantity("query dims", "Query dims", "dims", "active dims of a query", 1, _figure("query_active_dims"))
QUANTITIES = (
    Quantity("doc dims", "Active dims", "dims", "active dims of a document", 1, _figure("corpus_active_dims")),
    Quantity("FLOPS", "Expected FLOPS", "FLOPS", "expected FLOPS: dims that match", 2, _figure("avg_flops")),
    Quantity("query ms", "Query time", "ms", "median time of a query (ms)", 3, _query_ms),
    Quantity("index MB", "Index size", "MB", "exact index (MB)", 2, _index_mb),
    Quantity("train min", "Training time", "min", "training time (minutes)", 1, _minutes),
    Quantity("g CO2eq", "Emissions", "g", "emissions of the run (g CO2eq)", 2, _grams),
)


@dataclass(frozen=True)
class Comparison:
    """What a report shows.

    Attributes:
        systems: in the order given, BM25 behind the runs.
        headline: the set or group that charts and tests are about; empty if there are no figures.
        metric: the figure that they are about.
        starts: the runs before training, where that was measured; equal ones once.
        differences: pairs of systems, over the queries of the headline.
        searched: what search was measured on, if it was.
        notes: what a reader must know.
    """

    systems: list[System]
    headline: str
    metric: str
    starts: list[System] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    searched: Searched | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def metric_name(self) -> str:
        """The metric as people write it."""
        return METRIC_NAMES[self.metric]

    def quality(self, system: System) -> float | None:
        """The figure of a system that counts."""
        return system.figure(self.headline, self.metric)

    def difference(self, one: System, other: System) -> Difference | None:
        """What the better one of two systems has above the other, if both have figures of queries."""
        names = {one.name, other.name}
        return next((pair for pair in self.differences if {pair.first, pair.second} == names), None)

    def front(self, quantity: Quantity) -> list[bool]:
        """Which systems are on the Pareto front of quality and a cost.

        BM25 whose cost is not known costs nothing here, so that what ranks below it is on no front; nor is BM25 then.
        """
        costs = [quantity.value(system, self.headline) for system in self.systems]
        least = [
            0.0 if cost is None and system.kind == "bm25" else cost
            for cost, system in zip(costs, self.systems, strict=True)
        ]
        on_front = pareto_front(least, [self.quality(system) for system in self.systems])
        return [is_best and cost is not None for is_best, cost in zip(on_front, costs, strict=True)]


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


def headline_of(systems: Sequence[System], given: str | None) -> str:
    """The set or group that counts: the given one, else that of most systems, groups before sets; empty if none is.

    Raises:
        UserError: no system has figures of the given one.
    """
    sets = sets_of(systems)
    if given is not None and given not in sets:
        raise UserError(f"no system has figures of {given!r}; there are {', '.join(sets) or 'none at all'}.")
    return given or (sets[0] if sets else "")


def compare(
    systems: Sequence[System],
    headline: str,
    metric: str = "ndcg@10",
    searched: Searched | None = None,
    notes: Sequence[str] = (),
) -> Comparison:
    """Put systems side by side.

    Args:
        systems: with different names (see `with_one_bm25`).
        headline: see `headline_of`.
        metric: one of `METRICS`.
        searched: what search was measured on.
        notes: what a reader must know already.
    """
    shared = frozenset().union(*(members(system, headline) for system in systems))
    per_query = {system.name: system.per_query for system in systems if system.per_query}
    untested = [system.name for system in systems if headline in system.figures and not system.per_query]
    more = [note for system in systems for note in system.notes] + _differing_groups(systems, headline)
    if untested and headline:
        more.append(f"No figures of single queries, so no tests: {', '.join(untested)}.")
    return Comparison(
        list(systems),
        headline,
        metric,
        starts_of(systems),
        differences(per_query, shared, metric),
        searched,
        list(dict.fromkeys([*notes, *more])),
    )


def with_one_bm25(groups: Sequence[Sequence[System]]) -> list[System]:
    """All systems, with BM25 once where its rankings are equal, else once for each run that it belongs to.

    Args:
        groups: what each folder or file gave: the system and, perhaps, BM25 on its sets.
    """
    kept = _once((group[0].name, bm25) for group in groups for bm25 in group[1:])
    if len(kept) > 1:
        kept = [(owners, replace(bm25, name=f"{bm25.name} (of {owners[0]})")) for owners, bm25 in kept]
    return [*(group[0] for group in groups), *(bm25 for _, bm25 in kept)]


def starts_of(systems: Sequence[System]) -> list[System]:
    """The runs before training, as far as they are shown at a later stage; runs with an equal start are one row."""
    starts = [
        (system.name, System(system.name, "run", "before", system.before, system.run.per_query.get("before", ())))
        for system in systems
        if system.run and system.before and system.stage != "before"
    ]
    return [replace(start, name=", ".join(owners)) for owners, start in _once(starts)]


def _once(owned: Iterable[tuple[str, System]]) -> list[tuple[list[str], System]]:
    """Each of the systems once, with the names of all that it belongs to."""
    kept: list[tuple[list[str], System]] = []
    for owner, system in owned:
        for number, (owners, other) in enumerate(kept):
            if _is_same(other, system):
                kept[number] = ([*owners, owner], _merged(other, system))
                break
        else:
            kept.append(([owner], system))
    return kept


def _is_same(one: System, other: System) -> bool:
    """Whether two rank alike where both were evaluated; BM25 on other sets is the same BM25.

    Sparsity is compared to the seventh digit only: sums over the vocabulary come out differently from run to run.
    """
    shared = one.figures.keys() & other.figures.keys()
    figures = [(one.figures[name], other.figures[name]) for name in shared]
    queries = {figures.task: figures for figures in one.per_query}
    return (
        one.stage == other.stage
        and (bool(shared) or one.kind == "bm25")
        and all(math.isclose(a[name], b[name], rel_tol=1e-6) for a, b in figures for name in a.keys() & b.keys())
        and all(queries.get(each.task, each).metrics == each.metrics for each in other.per_query)
    )


def _merged(one: System, other: System) -> System:
    """The system with the sets of both."""
    have = {figures.task for figures in one.per_query}
    more = [figures for figures in other.per_query if figures.task not in have]
    return replace(one, figures={**other.figures, **one.figures}, per_query=[*one.per_query, *more])


def _differing_groups(systems: Sequence[System], headline: str) -> list[str]:
    if not is_group(headline):
        return []
    by_members: dict[frozenset[str], list[str]] = {}
    for system in systems:
        if headline in system.figures and (of := members(system, headline)):
            by_members.setdefault(of, []).append(system.name)
    if len(by_members) < 2:
        return []
    parts = [f"{len(of)} sets in {', '.join(names)}" for of, names in by_members.items()]
    return [f"{headline} is not the same mean everywhere, so its figures do not compare: {'; '.join(parts)}."]
