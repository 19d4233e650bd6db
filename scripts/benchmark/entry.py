"""What the benchmark reports of one comparison, and the table of them all."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Entry:
    """One comparison.

    Attributes:
        unit: of the medians `ours`, `peer` and `floor`, the last that of the bare matrix products.
        ratio: median of peer over ours, turn by turn: how many times faster, or smaller; where more is better, larger.
        quartiles: of that ratio.
        over_floor: median of ours over the floor, turn by turn.
        turns: how many turns each side took.
    """

    unit: str
    ours: float
    peer: float
    ratio: float
    quartiles: tuple[float, float]
    floor: float | None
    over_floor: float | None
    turns: int


def compare(
    unit: str, ours: Sequence[float], peer: Sequence[float], floor: Sequence[float] | None = None, more: bool = False
) -> Entry:
    """The entry of what was measured in each turn; with `more`, more is better."""
    median = statistics.median
    ratios = [a / b if more else b / a for a, b in zip(ours, peer, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    over = median(a / f for a, f in zip(ours, floor, strict=True)) if floor else None
    floor_median = median(floor) if floor else None
    return Entry(unit, median(ours), median(peer), median(ratios), (low, high), floor_median, over, len(ratios))


def table(entries: Mapping[str, Entry]) -> Table:
    """The entries for the terminal."""
    result = Table("what", "unit", "ours", "peer", "ratio", "quartiles", "floor", "over floor")
    for name, entry in entries.items():
        low, high = entry.quartiles
        floor = "" if entry.floor is None else f"{entry.floor:.3g}"
        over = "" if entry.over_floor is None else f"{entry.over_floor:.2f}"
        figures = (f"{entry.ours:.3g}", f"{entry.peer:.3g}", f"{entry.ratio:.2f}", f"{low:.2f} to {high:.2f}")
        result.add_row(name, entry.unit, *figures, floor, over)
    return result
