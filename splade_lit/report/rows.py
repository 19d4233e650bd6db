"""The figures of a comparison as rows of text, for the terminal and for the page."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from splade_lit.evaluation.metric_names import METRICS
from splade_lit.evaluation.paired_tests import p_value
from splade_lit.report.comparison import QUANTITIES, QUERY_DIMS, Comparison, Quantity, quality_of
from splade_lit.report.system import System, sets_of

_WIDTH = 120  # columns of the tables where no terminal says


@dataclass(frozen=True)
class Rows:
    """A table as text: the first `names` columns hold names, the others figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


def quality_rows(comparison: Comparison, metrics: Iterable[str] = METRICS) -> Rows:
    """Each system and each start: quality and sparsity on the headline.

    `*` marks the systems that are on the Pareto front of active dims.
    """
    shown = [*(quality_of(metric) for metric in metrics), QUERY_DIMS, *QUANTITIES[:2]]
    front = [*comparison.front(QUANTITIES[0]), *(False for _ in comparison.starts)]
    rows = [
        [system.name, system.stage or "-", *_cells(system, comparison, shown), "*" if on_front else ""]
        for system, on_front in zip([*comparison.systems, *comparison.starts], front, strict=True)
    ]
    return Rows(comparison.headline, ["system", "stage", *(one.name for one in shown), "front"], rows, names=2)


def measure_rows(comparison: Comparison) -> Rows | None:
    """Each system and each start by the measures of ir_measures; None where no system has one."""
    shown = [quality_of(measure) for measure in comparison.measures]
    if not shown:
        return None
    systems = [*comparison.systems, *comparison.starts]
    rows = [[system.name, system.stage or "-", *_cells(system, comparison, shown)] for system in systems]
    return Rows("measures of ir_measures", ["system", "stage", *(one.name for one in shown)], rows, names=2)


def cost_rows(comparison: Comparison) -> Rows:
    """Each system: what search and training cost, as far as it is known."""
    shown = QUANTITIES[2:]
    rows = [[system.name, *_cells(system, comparison, shown)] for system in comparison.systems]
    return Rows("cost", ["system", *(one.name for one in shown)], rows)


def _cells(system: System, comparison: Comparison, shown: Sequence[Quantity]) -> list[str]:
    return [quantity.of(system, comparison.headline) for quantity in shown]


def set_rows(comparison: Comparison) -> Rows:
    """The metric of each system on each set."""
    quality, sets = quality_of(comparison.metric), sets_of(comparison.systems)
    rows = [[system.name, *(quality.of(system, one) for one in sets)] for system in comparison.systems]
    return Rows(quality.name, ["system", *sets], rows)


def test_rows(comparison: Comparison) -> Rows:
    """Each pair of systems: the mean difference, wins and losses, and p values corrected by Holm."""
    rows = [
        [
            pair.first,
            pair.second,
            f"{pair.mean:+.4f}",
            f"{pair.interval[0]:+.4f} to {pair.interval[1]:+.4f}" if pair.interval else "-",
            f"{pair.wins}/{pair.ties}/{pair.losses}",
            p_value(pair.p_t),
            p_value(pair.p_random),
        ]
        for pair in comparison.differences
    ]
    columns = ["system", "against", "mean", "95 % interval", "won, equal, lost", "p (t-test)", "p (randomisation)"]
    return Rows(f"differences in {comparison.metric_name}, query by query", columns, rows, names=2)


def wide_console() -> Console:
    """Where tables are printed: a terminal as wide as it is, or else 120 columns, unless COLUMNS asks for others."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH
    return console


def terminal_table(rows: Rows) -> Table:
    """The rows for a terminal; names are text, whatever they look like."""
    table = Table(title=Text(rows.title), title_justify="left", box=SIMPLE, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(rows.columns):
        name = number < rows.names
        # A word a line: then the figures alone decide how wide a column is, and they are never broken.
        heading = column if name else column.replace("@", " @").replace(" ", "\n")
        justify: JustifyMethod = "left" if name or column in ("front", "note") else "right"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=not name)
    for row in rows.rows:
        table.add_row(*map(Text, row))
    return table
