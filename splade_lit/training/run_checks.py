"""What a run is refused for before it starts, whoever starts it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler

from splade_lit.core.distributed import gather, world_size
from splade_lit.core.errors import UserError

_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def check_precision(precision: str) -> None:
    """Raise a `UserError` where a precision does not keep weights, scores and penalties in 32 bits."""
    if precision not in _PRECISIONS:
        raise UserError(f"trainer.precision is {precision}; it must be one of {', '.join(_PRECISIONS)}.")


def check_accumulation(callbacks: Sequence[Any]) -> None:
    """Raise a `UserError` where a callback changes how many batches a step has, as schedules need to know all steps."""
    if any(isinstance(one, GradientAccumulationScheduler) for one in callbacks):
        raise UserError(
            "GradientAccumulationScheduler changes how many steps a run has, which learning rates, schedules and "
            "targets need to know; give trainer.accumulate_grad_batches one number."
        )


def check_same_checkpoint(path: str | Path | None) -> None:
    """See that all processes go on from the same checkpoint, or none does; each must call this.

    Raises:
        UserError: on all of them, where machines have files of their own.
    """
    if world_size() == 1:
        return
    found = path and str(path)
    if found and Path(found).is_file():
        with Path(found).open("rb") as file:
            found = hashlib.file_digest(file, "blake2b").hexdigest()
    if len(set(gather(found))) > 1:
        raise UserError(
            "The processes of this run would go on from different checkpoints, or some from none; keep the folder of "
            "the run where all machines read it."
        )
