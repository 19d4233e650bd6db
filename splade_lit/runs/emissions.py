"""`emissions.csv` of a run: codecarbon's columns, a row for each stage of each start of the run."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from splade_lit.core.errors import UserError
from splade_lit.runs.csv_file import read_csv, write_csv

EMISSIONS = "emissions.csv"
# The columns that grow while a run goes on, in codecarbon's units: seconds, kg, kWh, litres.
SUMS = ("duration", "emissions", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed", "water_consumed")

Row = dict[str, Any]


@dataclass(frozen=True)
class Usage:
    """What was used during a stage of the run."""

    seconds: float
    energy_kwh: float
    emissions_kg: float

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Usage":
        """The sum of rows of emissions.csv."""
        used = [[row[name] for name in ("duration", "energy_consumed", "emissions")] for row in rows]
        return cls(*map(sum, zip(*used, strict=True)))


@dataclass(frozen=True)
class Footprint:
    """Sums of emissions.csv by stage, `training` and `evaluation`; without a country, by the world's average."""

    stages: dict[str, Usage]
    country: str | None
    on_cloud: bool
    cpu_model: str
    ram_gb: float

    @property
    def total(self) -> Usage:
        """Of all stages."""
        return Usage(*map(sum, zip(*map(astuple, self.stages.values()), strict=True)))


def grown(row: Row | None, stage: str, used: Row) -> Row:
    """The row of a stage, None if the stage begins, with what a tracker has measured since its last reading added.

    >>> first, used = dict.fromkeys(SUMS, 1.0), dict.fromkeys(SUMS, 2.0)
    >>> grown(first, "training", used)["energy_consumed"]
    3.0
    """
    sums = {name: (row or {}).get(name, 0.0) + used[name] for name in SUMS}
    rate = sums["emissions"] / sums["duration"] if sums["duration"] else 0.0
    return {"stage": stage, **used, **sums, "emissions_rate": rate}


def read_emissions(path: Path) -> list[Row]:
    """The rows of a file, its sums as numbers; none if there is no file, a UserError if it is damaged."""
    try:
        return [row | {name: float(row[name]) for name in SUMS} for row in read_csv(path)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a file of emissions that a run left; move it away.") from error


def write_emissions(path: Path, rows: Sequence[Row]) -> None:
    """Write rows, one at least; see `replace_text`."""
    write_csv(path, rows, list(dict.fromkeys(name for row in rows for name in row)))


def footprint(rows: Sequence[Row]) -> Footprint | None:
    """What a run used by stage; None without rows."""
    if not rows:
        return None
    stages = dict.fromkeys(row["stage"] for row in rows)
    last = rows[-1]
    return Footprint(
        stages={stage: Usage.of(row for row in rows if row["stage"] == stage) for stage in stages},
        country=last["country_name"] or None,
        on_cloud=last["on_cloud"] == "Y",
        cpu_model=last["cpu_model"],
        ram_gb=float(last["ram_total_size"]),
    )
