"""The log of a run as one CSV file: a row an optimizer step, kept when a run is resumed."""

import csv
import io
import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from splade_lit.core.errors import UserError
from splade_lit.runs.csv_file import read_csv, write_csv
from splade_lit.runs.log import LOG

logger = logging.getLogger(__name__)

_MOST_DAMAGED = 2  # rows at the end, that a crash can leave


class CsvLog(Logger):
    """Writes `metrics.csv`: a column a metric, a row an optimizer step, empty where a metric was not logged.

    Steps count from 0, as Lightning's do: row 0 holds the losses of the first step, and figures of the model after it.
    Lightning's own CSVLogger deletes an earlier file and writes several rows a step; this one goes on with the file of
    a resumed run, dropping rows of steps that are run again. A UserError says that the file cannot be written, or is
    damaged in other places than its last rows, which are dropped with a warning.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / LOG
        self._columns: list[str] = ["step"]
        self._row: dict[str, Any] = {}
        self._row_start: int | None = None  # where in the file it begins, once written
        self._started = False

    @property
    def name(self) -> str:
        """Name of the run: that of its folder."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """Empty: a folder holds one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved configuration lies beside the log."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add figures to the row of a step; a row is done when another step begins."""
        step = self._row.get("step", 0) if step is None else step
        if not self._started:
            self._started = True
            if rows := self._read():
                self._go_on(rows, step)
        if self._row.get("step", step) != step:
            self.save()
            self._row, self._row_start = {}, None
        self._row |= {"step": step, **{k: v for k, v in metrics.items() if k != "epoch"}}

    @rank_zero_only
    def save(self) -> None:
        """Write the row of the moment, over what was written of it before."""
        if not self._row:
            return
        new = [name for name in self._row if name not in self._columns]
        if new or not self.path.exists():
            rows = self._read()
            self._rewrite(rows if self._row_start is None else rows[:-1], [*self._columns, *new])
            self._row_start = None
        line = io.StringIO(newline="")
        csv.DictWriter(line, self._columns, lineterminator="\n").writerow(self._row)
        try:
            with self.path.open("r+b") as file:
                self._row_start = file.seek(0, os.SEEK_END) if self._row_start is None else file.seek(self._row_start)
                file.write(line.getvalue().encode())
                file.truncate()
        except OSError as error:
            self._row = {}  # not to be tried again at the run's end
            ways = "free space and go on with --ckpt_path last"
            raise UserError(f"{self.path} cannot be written ({error.strerror}); {ways}.") from error

    def _read(self) -> list[dict[str, str]]:
        try:
            rows = read_csv(self.path)
        except (OSError, ValueError) as error:
            raise self._damaged() from error
        kept = len(rows)
        while kept and len(rows) - kept < _MOST_DAMAGED and not _is_whole(rows[kept - 1]):
            kept -= 1
        if (rows and "step" not in rows[0]) or not all((row["step"] or "").isdecimal() for row in rows[:kept]):
            raise self._damaged()
        if kept < len(rows):
            logger.warning("%s: its last rows, %d, are damaged and left out.", self.path, len(rows) - kept)
            self._rewrite(rows[:kept], [name for name in rows[0] if name])
        return rows[:kept]

    def _damaged(self) -> UserError:
        return UserError(f"{self.path} is damaged; correct it by hand, or move it away to begin another.")

    def _go_on(self, rows: list[dict[str, str]], step: int) -> None:
        """Keep the rows of an earlier start before `step`, and what that one has: its validation may come again."""
        self._rewrite([row for row in rows if int(row["step"]) < step], list(rows[0]))
        for row in rows:
            if int(row["step"]) == step > 0:  # at 0 a run begins anew
                self._row = {name: value for name, value in row.items() if value}
                self.save()
                self._row["step"] = step

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        write_csv(self.path, rows, columns)
        self._columns = columns  # an interrupt before leaves those of the file


def _is_whole(row: dict[str, str]) -> bool:
    """Whether a row is a step and as many numbers as columns: the last may not be, where a machine went down."""
    try:
        int(row["step"])
        list(map(float, filter(None, row.values())))
    except (KeyError, TypeError, ValueError):
        return False
    return None not in row.values()
