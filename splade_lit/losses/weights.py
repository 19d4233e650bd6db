"""Weights of penalties, by the optimizer step or by what is observed, and factors of learning rates."""

from typing import Literal

from torch import Tensor

from splade_lit.core.ranges import check_range
from splade_lit.losses.part import Part, Step

Schedule = Literal["quadratic", "linear", "constant"]
_POWERS: dict[Schedule, int] = {"quadratic": 2, "linear": 1, "constant": 0}


def penalty_factor(step: int, ramp_steps: int, schedule: Schedule = "quadratic") -> float:
    """Factor of a penalty's weight: `(step / ramp_steps)^2` up to 1, then 1 (Formal et al. 2021, "SPLADE").

    Steps are optimizer steps done. The schedule "linear" has no square, "constant" is 1 throughout.

    >>> [penalty_factor(step, 4) for step in (0, 2, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    return min(1.0, step / ramp_steps) ** _POWERS[schedule]


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor of a learning rate: linear from 0 to 1 over the warm-up, then linear to 0 at `total_steps`.

    >>> [learning_rate_factor(step, 2, 6) for step in (0, 1, 2, 4, 6)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


class Weight(Part):
    """The weight of a penalty, decided step by step; subclasses define `weight(step, total_steps)`."""

    def observe(self, step: Step) -> None:
        """Look at a training batch before its weight is asked for; under accumulation a step has several batches.

        `step.penalty` is the value of what it weighs, `step.ranking` the ranking loss beside it.
        """

    def weight(self, step: int, total_steps: int) -> float | Tensor:
        """The weight after `step` of a run's `total_steps` optimizer steps."""
        raise NotImplementedError

    @property
    def figures(self) -> dict[str, Tensor]:
        """What else the log shows of it, scalars by name: `train/lambda_d_NAME`."""
        return {}


class Ramp(Weight):
    """A weight that rises to its value over the first steps, then stays; see `penalty_factor`.

    Args:
        value: the full weight.
        schedule: how it rises: `quadratic`, `linear` or `constant`.
        ramp_ratio: fraction of all optimizer steps until the full weight.
    """

    def __init__(self, value: float, schedule: Schedule = "quadratic", ramp_ratio: float = 1 / 3) -> None:
        super().__init__()
        check_range("Ramp", 0, value=value)
        check_range("Ramp", 0, 1, ramp_ratio=ramp_ratio)
        self.value = value
        self.schedule: Schedule = schedule
        self.ramp_ratio = ramp_ratio

    def weight(self, step: int, total_steps: int) -> float:
        """The weight after `step` of a run's `total_steps` optimizer steps."""
        return penalty_factor(step, max(1, int(total_steps * self.ramp_ratio)), self.schedule) * self.value
