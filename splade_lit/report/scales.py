"""Axes: which range, which ticks, and where a value lies on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LOG_FROM = 20  # largest over smallest value


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map from the values `low` to `high` to the places `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high, value = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Round values in its range."""
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def make_scale(values: Sequence[float], start: float, end: float, is_cost: bool = False) -> Scale:
    """A scale with some room around all values; it never begins below 0 if no value does.

    One of costs begins at 0, so that what costs nearly the same lies close together, or is logarithmic where they
    differ much.

    >>> make_scale([10.0, 20.0], 0, 100).low < 10.0
    True
    >>> make_scale([0.0, 1.0], 0, 100).low
    0.0
    """
    low, high = min(values), max(values)
    if is_cost and low > 0 and high / low > _LOG_FROM:
        return Scale(low / 1.5, high * 1.5, start, end, log=True)
    if is_cost and low >= 0:
        return Scale(0.0, 1.1 * high or 1.0, start, end)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(max(low - room, 0.0) if low >= 0 else low - room, high + room, start, end)


def ticks(low: float, high: float) -> list[float]:
    """About five round values from `low` to `high`.

    >>> ticks(73.0, 161.0)
    [80.0, 100.0, 120.0, 140.0, 160.0]
    """
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values from `low` to `high` on a logarithmic scale: powers of ten, and 2 and 5 between a few of them.

    >>> log_ticks(0.8, 30.0)
    [1.0, 2.0, 5.0, 10.0, 20.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    values = [float(f"{factor}e{power}") for power in powers for factor in factors]
    return [value for value in values if low <= value <= high]
