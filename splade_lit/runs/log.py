"""`metrics.csv`, the log of a run: a column a metric, a row an optimizer step, empty where a metric was not logged."""

import math
from pathlib import Path

from splade_lit.core.errors import UserError
from splade_lit.runs.csv_file import read_csv

LOG = "metrics.csv"

Log = dict[int, dict[str, float]]
"""Optimizer steps done, from 1 on and ascending, to metric to finite value."""


def read_log(path: Path) -> Log:
    """The log of a run; an empty one if there is no file, a UserError if it is damaged."""
    rows: Log = {}
    try:
        for row in read_csv(path):
            values = {name: float(value) for name, value in row.items() if name != "step" and value}
            step = int(row["step"]) + 1  # Lightning counts from 0
            rows.setdefault(step, {}).update({name: value for name, value in values.items() if math.isfinite(value)})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not the log of a run (a column `step`, numbers below); move it away.") from error
    return dict(sorted(rows.items()))
