"""The figures of a comparison as rows of text, for the terminal and for the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from splade_lit.evaluation.paired_tests import p_value
from splade_lit.report.comparison import METRIC_NAMES, QUANTITIES, QUERY_DIMS, Comparison
from splade_lit.report.system import sets_of

_FRONT = "*"


@dataclass(frozen=True)
class Rows:
    """A table as text: the first `names` columns hold names, the others figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


def quality_rows(comparison: Comparison, metrics: Sequence[str] = tuple(METRIC_NAMES)) -> Rows:
    """Each system and each start: quality and sparsity on the headline.

    `*` marks the systems that are on the Pareto front of active dims.
    """
    shown = (QUERY_DIMS, *QUANTITIES[:2])
    front = [*comparison.front(QUANTITIES[0]), *(False for _ in comparison.starts)]
    rows = [
        [
            system.name,
            system.stage or "-",
            *(_quality(system.figure(comparison.headline, metric)) for metric in metrics),
            *(quantity.show(quantity.value(system, comparison.headline)) for quantity in shown),
            _FRONT if on_front else "",
        ]
        for system, on_front in zip([*comparison.systems, *comparison.starts], front, strict=True)
    ]
    columns = [
        "system",
        "stage",
        *(METRIC_NAMES[metric] for metric in metrics),
        *(quantity.name for quantity in shown),
        "front",
    ]
    return Rows(comparison.headline, columns, rows, names=2)


def cost_rows(comparison: Comparison) -> Rows:
    """Each system: what search and training cost, as far as it is known."""
    rows = [
        [system.name, *(quantity.show(quantity.value(system, comparison.headline)) for quantity in QUANTITIES[2:])]
        for system in comparison.systems
    ]
    return Rows("cost", ["system", *(quantity.name for quantity in QUANTITIES[2:])], rows)


def set_rows(comparison: Comparison) -> Rows:
    """The metric of each system on each set."""
    sets = sets_of(comparison.systems)
    rows = [
        [system.name, *(_quality(system.figure(one, comparison.metric)) for one in sets)]
        for system in comparison.systems
    ]
    return Rows(comparison.metric_name, ["system", *sets], rows)


def test_rows(comparison: Comparison) -> Rows:
    """Each pair of systems: the mean difference, wins and losses, and p values corrected by Holm."""
    rows = [
        [
            pair.first,
            pair.second,
            f"{pair.mean:+.4f}",
            f"{pair.interval[0]:+.4f} to {pair.interval[1]:+.4f}" if pair.interval else "-",
            f"{pair.wins}/{pair.ties}/{pair.losses}",
            p_value(pair.holm_t),
            p_value(pair.holm_random),
        ]
        for pair in comparison.differences
    ]
    columns = ["system", "against", "mean", "95 % interval", "won, equal, lost", "p (t-test)", "p (randomisation)"]
    return Rows(f"differences in {comparison.metric_name}, query by query", columns, rows, names=2)


def _quality(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def terminal_table(rows: Rows) -> Table:
    """The rows for a terminal; names are text, whatever they look like."""
    table = Table(title=Text(rows.title), title_justify="left", box=SIMPLE, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(rows.columns):
        name = number < rows.names
        # A word a line: then the figures alone decide how wide a column is, and they are never broken.
        heading = column if name else column.replace("@", " @").replace(" ", "\n")
        justify: JustifyMethod = "left" if name or column == "front" else "right"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=not name)
    for row in rows.rows:
        table.add_row(*map(Text, row))
    return table
