"""How far long work is: a bar in a terminal or a notebook, lines in the log elsewhere."""

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Self, TypeVar

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Batch = TypeVar("Batch", bound=Sized)

logger = logging.getLogger(__name__)


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(42), duration(754), duration(9000)
    ('42 s', '13 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class WorkProgress:
    """Counts what is done while its `with` block lasts: "encoding" is a verb, "documents" a unit.

    `total` is None if nobody knows how many there are; `show=False` shows nothing; between two lines of a log are
    `seconds` at least.
    """

    def __init__(self, verb: str, unit: str, total: int | None, *, show: bool = True, seconds: float = 30.0) -> None:
        console = get_console()
        drawn = console.is_interactive or console.is_jupyter
        parts = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        rate = TextColumn("{task.fields[rate]}")
        self._bar = Progress(*parts, rate, TimeRemainingColumn(), disable=not (show and drawn), transient=True)
        self._task = self._bar.add_task("", total=total, rate="")
        self._logs = show and not drawn
        self._verb, self._unit, self._total, self._seconds = verb, unit, total, seconds
        self._done = self._skipped = 0

    def __enter__(self) -> Self:
        """Count from now."""
        self._start = self._logged = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bar."""
        self._bar.stop()

    def skip(self, count: int) -> None:
        """So many need no work; they do not count for the speed."""
        self._skipped += count
        self._bar.reset(self._task, completed=self._done + self._skipped)

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        self._bar.advance(self._task, count)
        speed = self._bar.tasks[self._task].speed
        self._bar.update(self._task, rate=f"{speed:,.0f}/s" if speed else "")
        now = time.monotonic()
        if self._logs and now - self._logged >= self._seconds:
            self._logged = now
            done, speed = self._done + self._skipped, self._done / (now - self._start)
            of, left = "", ""
            if self._total is not None:
                of, left = f" of {self._total:,}", f", about {duration(max(self._total - done, 0) / speed)} left"
            pace = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
            logger.info("%s: %s%s %s, %s a second%s", self._verb, f"{done:,}", of, self._unit, pace, left)


def counted(batches: Iterable[Batch], verb: str, unit: str, total: int | None = None) -> Iterator[Batch]:
    """The batches, with the progress of what is done with them."""
    with WorkProgress(verb, unit, total) as progress:
        for batch in batches:
            yield batch
            progress.advance(len(batch))
