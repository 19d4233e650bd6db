"""AdamW and the schedule of its learning rates."""

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from splade_lit.losses.weights import learning_rate_factor


def make_optimizer(
    groups: Sequence[dict[str, Any]], warmup_ratio: float, total_steps: int, is_scaled: bool
) -> dict[str, Any]:
    """AdamW over groups, and a schedule by which their learning rates rise linearly, then fall linearly to 0.

    It is what Lightning's `configure_optimizers` returns.

    Args:
        groups: parameters with their peak learning rate `lr` and `weight_decay`.
        warmup_ratio: fraction of all optimizer steps over which learning rates rise.
        total_steps: optimizer steps of the run.
        is_scaled: whether a GradScaler scales the loss.
    """
    # The fused form leaves out an update on the device. A GradScaler does that by itself, and cannot unscale the
    # gradients of that form before they are clipped; None lets torch take the next best, where False would take
    # parameters one by one.
    optimizer = AdamW(groups, fused=None if is_scaled else True)
    warmup_steps = math.ceil(total_steps * warmup_ratio)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, warmup_steps, total_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def set_rates(optimizer: Any, schedule: Any, groups: Sequence[dict[str, Any]]) -> None:
    """Give what `make_optimizer` has made the rates of groups, where a checkpoint has brought others."""
    if not isinstance(schedule, LambdaLR):
        return  # of a module that makes its own
    for place, (group, wanted) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        group["weight_decay"] = wanted["weight_decay"]
        if group["initial_lr"] != wanted["lr"]:
            group["initial_lr"] = schedule.base_lrs[place] = wanted["lr"]
            group["lr"] = wanted["lr"] * schedule.lr_lambdas[place](schedule.last_epoch)
