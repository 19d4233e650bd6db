"""Systems side by side: on which set, by which figure, and what is to be said about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from splade_lit.core.errors import UserError
from splade_lit.evaluation.per_query import METRICS
from splade_lit.report.measure import Searched
from splade_lit.report.statistics import Difference, differences, pareto_front
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
        differences: pairs of systems, over the queries of the headline.
        searched: what search was measured on, if it was.
        notes: what a reader must know.
    """

    systems: list[System]
    headline: str
    metric: str
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

    def front(self, quantity: Quantity) -> list[bool]:
        """Which systems are on the Pareto front of quality and a cost."""
        costs = [quantity.value(system, self.headline) for system in self.systems]
        return pareto_front(costs, [self.quality(system) for system in self.systems])


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
    told = [*notes, *(note for system in systems for note in system.notes), *_differing_groups(systems, headline)]
    shared = frozenset().union(*(members(system, headline) for system in systems))
    per_query = {system.name: system.per_query for system in systems if system.per_query}
    without = [system.name for system in systems if headline in system.figures and not system.per_query]
    if without and headline:
        told.append(f"No figures of single queries, so no tests: {', '.join(without)}.")
    return Comparison(
        list(systems), headline, metric, differences(per_query, shared, metric), searched, list(dict.fromkeys(told))
    )


def with_one_bm25(groups: Sequence[Sequence[System]]) -> list[System]:
    """All systems, with BM25 once where its figures agree, else once for each run that it belongs to.

    Args:
        groups: what each folder or file gave: the system and, perhaps, BM25 on its sets.
    """
    systems = [group[0] for group in groups]
    kept: list[tuple[str, System]] = []
    for group in groups:
        for bm25 in group[1:]:
            for number, (owner, other) in enumerate(kept):
                if (merged := _merged(other, bm25)) is not None:
                    kept[number] = (owner, merged)
                    break
            else:
                kept.append((group[0].name, bm25))
    if len(kept) > 1:
        kept = [(owner, replace(bm25, name=f"{bm25.name} (of {owner})")) for owner, bm25 in kept]
    return [*systems, *(bm25 for _, bm25 in kept)]


def _merged(one: System, other: System) -> System | None:
    """BM25 with the sets of both; None where they differ, as on another corpus or over another tokenizer's tokens."""
    shared = [name for name in one.figures if name in other.figures]
    if one.stage != other.stage or any(one.figures[name] != other.figures[name] for name in shared):
        return None
    have = {figures.task for figures in one.per_query}
    more = [figures for figures in other.per_query if figures.task not in have]
    return replace(one, figures={**one.figures, **other.figures}, per_query=[*one.per_query, *more])


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
