"""AdamW over groups of parameters, with learning rates that rise and fall by optimizer steps."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from splade_lit.losses.weights import learning_rate_factor


@dataclass(frozen=True)
class Group:
    """Parameters that are trained with the same settings.

    Attributes:
        name: the log has its learning rate as `train/learning_rate_NAME`.
        parameters: the trainable ones.
        learning_rate: its peak.
        weight_decay: AdamW's.
    """

    name: str
    parameters: list[nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0


def adamw(
    groups: list[Group], warmup_ratio: float, total_steps: int, fused: bool | None
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW and its schedule, which goes linearly up to the peaks, then linearly down to 0.

    Args:
        groups: what is trained.
        warmup_ratio: fraction of the steps over which learning rates rise.
        total_steps: optimizer steps of the whole run.
        fused: as torch's AdamW takes it.
    """
    settings = [
        {"name": one.name, "params": one.parameters, "lr": one.learning_rate, "weight_decay": one.weight_decay}
        for one in groups
    ]
    optimizer = torch.optim.AdamW(settings, fused=fused)
    warmup_steps = int(np.ceil(total_steps * warmup_ratio))
    return optimizer, LambdaLR(optimizer, lambda step: learning_rate_factor(step, warmup_steps, total_steps))
