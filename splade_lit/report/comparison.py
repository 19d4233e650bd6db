"""Systems side by side: on which set, by which figure, and what is to be said about them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from splade_lit.core.errors import UserError
from splade_lit.evaluation.metric_names import is_measure, shown_name
from splade_lit.evaluation.paired_tests import Difference, differences
from splade_lit.evaluation.per_query import QueryFigures
from splade_lit.report.charts import Series
from splade_lit.report.measure import Searched
from splade_lit.report.system import System, is_group, members, sets_of


@dataclass(frozen=True)
class Quantity:
    """A figure of a system and how it is shown.

    Attributes:
        figure: its plain name, see `System.figure`.
        name: short, for the head of a column.
        digits: decimals shown.
        title: how the title of a chart of this cost begins.
        unit: of a value in a sentence.
        label: with the unit, for an axis.
    """

    figure: str
    name: str
    digits: int
    title: str = ""
    unit: str = ""
    label: str = ""

    def show(self, value: float | None) -> str:
        """The value as text."""
        return "-" if value is None else f"{value:,.{self.digits}f}"

    def of(self, system: System, one: str) -> str:
        """The value of a system on a set as text."""
        return self.show(system.figure(one, self.figure))


QUERY_DIMS = Quantity("query_active_dims", "query dims", 1)
# Costs: less is better.
QUANTITIES = (
    Quantity("corpus_active_dims", "doc dims", 1, "Active dims", "dims", "active dims of a document"),
    Quantity("avg_flops", "FLOPS", 2, "Expected FLOPS", "FLOPS", "expected FLOPS: dims that match"),
    Quantity("search_ms", "query ms", 3, "Query time", "ms", "median time of a query (ms)"),
    Quantity("index_mb", "index MB", 2, "Index size", "MB", "exact index (MB)"),
    Quantity("training_minutes", "train min", 1, "Training time", "min", "training time (minutes)"),
    Quantity("emissions_g", "g CO2eq", 2, "Emissions", "g", "emissions of the run (g CO2eq)"),
)


def quality_of(metric: str) -> Quantity:
    """A metric as a figure to show."""
    return Quantity(metric, shown_name(metric), 4)


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
        return shown_name(self.metric)

    @property
    def measures(self) -> list[str]:
        """The measures by the names of ir_measures that a system has on the headline."""
        figures = (name for system in self.systems for name in system.figures.get(self.headline, {}))
        return list(dict.fromkeys(filter(is_measure, figures)))

    @property
    def series(self) -> dict[str, Series]:
        """How each system is drawn, by its name."""
        return {one.name: Series(number, reference=one.kind == "bm25") for number, one in enumerate(self.systems)}

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
        costs = [system.figure(self.headline, quantity.figure) for system in self.systems]
        free = [cost is None and system.kind == "bm25" for cost, system in zip(costs, self.systems, strict=True)]
        least = [0.0 if is_free else cost for cost, is_free in zip(costs, free, strict=True)]
        on_front = pareto_front(least, [self.quality(system) for system in self.systems])
        return [is_best and not is_free for is_best, is_free in zip(on_front, free, strict=True)]


def pareto_front(costs: Sequence[float | None], qualities: Sequence[float | None]) -> list[bool]:
    """Which systems no other one beats: none costs at most as much, is at least as good, and is better in one of both.

    Systems without one of the two figures are not on the front; equal systems are on it together.

    >>> pareto_front([10, 20, 20, 30, None], [0.3, 0.5, 0.4, 0.5, 0.9])
    [True, True, False, False, False]
    """
    points = [
        None if cost is None or quality is None else (cost, quality)
        for cost, quality in zip(costs, qualities, strict=True)
    ]
    known = [point for point in points if point]
    return [
        point is not None and not any(c <= point[0] and q >= point[1] and (c, q) != point for c, q in known)
        for point in points
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
    """Put systems of different names (see `with_one_bm25`) side by side; the other arguments are `Comparison`'s."""
    shared = frozenset().union(*(members(system, headline) for system in systems))
    per_query = {system.name: system.per_query for system in systems if system.per_query}
    tested_on = {one.name for one in systems if any(metric in figures.metrics for figures in one.per_query)}
    untested = [one.name for one in systems if headline in one.figures and one.name not in tested_on]
    notes = [*notes, *(note for system in systems for note in system.notes), *_differing_groups(systems, headline)]
    if untested and headline:
        of = f" by {shown_name(metric)}" if is_measure(metric) else ""
        notes.append(f"No figures of single queries{of}, so no tests: {', '.join(untested)}.")
    tested = differences(per_query, shared, metric)
    return Comparison(list(systems), headline, metric, starts_of(systems), tested, searched, list(dict.fromkeys(notes)))


def with_one_bm25(groups: Sequence[Sequence[System]]) -> list[System]:
    """All systems, with BM25 once where its rankings are equal, else once for each run that it belongs to.

    Each folder or file gives a group: the system and, perhaps, BM25 on its sets.
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
    """Each of the systems once, with the names of all that it belongs to and the sets of all that are the same."""
    kept: list[tuple[list[str], System]] = []
    for owner, system in owned:
        for number, (owners, other) in enumerate(kept):
            if _is_same(other, system):
                sets = dict.fromkeys((*system.figures, *other.figures))
                figures = {one: {**system.figures.get(one, {}), **other.figures.get(one, {})} for one in sets}
                both = replace(other, figures=figures, per_query=_of_both(other.per_query, system.per_query))
                kept[number] = ([*owners, owner], both)
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
        and all(_agree(queries.get(each.task, each), each) for each in other.per_query)
    )


def _agree(one: QueryFigures, other: QueryFigures) -> bool:
    """Whether figures of the queries of a task are the same in the metrics that both have."""
    return all(one.metrics[name] == other.metrics[name] for name in one.metrics.keys() & other.metrics.keys())


def _of_both(first: Sequence[QueryFigures], second: Sequence[QueryFigures]) -> list[QueryFigures]:
    """Figures of queries of a system that was evaluated twice: all tasks, with all metrics of each."""
    more = {one.task: one for one in second}
    both = [replace(one, metrics={**more.pop(one.task, one).metrics, **one.metrics}) for one in first]
    return [*both, *more.values()]


def _differing_groups(systems: Sequence[System], headline: str) -> list[str]:
    by_members: dict[frozenset[str], list[str]] = {}
    for system in systems:
        if is_group(headline) and headline in system.figures and (of := members(system, headline)):
            by_members.setdefault(of, []).append(system.name)
    parts = "; ".join(f"{len(of)} sets in {', '.join(names)}" for of, names in by_members.items())
    note = f"{headline} is not the same mean everywhere, so its figures do not compare: {parts}."
    return [note] if len(by_members) > 1 else []
