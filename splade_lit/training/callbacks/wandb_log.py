"""The log of a run on W&B: Lightning's logger, which also says which value of a metric is its best."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

STEP = "trainer/global_step"  # the x-axis of all metrics: optimizer steps, counted from 0

_MORE_IS_BETTER = re.compile(r"_dot_[^/]+$|sparsity_ratio$")
_LESS_IS_BETTER = re.compile(r"loss$|active_dims(_median|_p95)?$|avg_flops$")


def best_value(metric: str) -> Literal["max", "min"] | None:
    """Which value of a metric is its best over a run; None where that means nothing.

    >>> best_value("val/NanoBEIR_mean_dot_ndcg@10"), best_value("sparsity/document_active_dims")
    ('max', 'min')
    >>> best_value("val/NanoNQ_dot_AP(rel=2)@100")
    'max'
    >>> best_value("train/lambda_d")
    """
    if _MORE_IS_BETTER.search(metric):
        return "max"
    return "min" if _LESS_IS_BETTER.search(metric) else None


class WandbLog(WandbLogger):
    """Lightning's W&B logger, whose summary of a run holds the best value of each metric beside the last.

    `val/NanoBEIR_mean_dot_ndcg@10` has `max` and `last` there, `val/loss` and `sparsity/document_active_dims` have
    `min` and `last`; what has no best value has the last alone. The x-axis of all is the optimizer step.

    Texts of the data go to W&B in two ways only: in the table of `TermTable`, if the run has that callback, and in the
    card of the model where `model_artifact` is on and `SaveModel` has `sample_texts`.

    Args:
        model_artifact: upload the folder of the finished model as an artifact, named after the folder of the run; its
            card quotes texts of the data unless SaveModel has `sample_texts: false`.
        **settings: those of Lightning's WandbLogger.
    """

    def __init__(self, model_artifact: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.model_artifact = model_artifact
        self._defined: set[str] = set()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log, and define each metric before its first value."""
        for metric in metrics.keys() - self._defined:
            if best := best_value(metric):
                name = f"{self._prefix}{self.LOGGER_JOIN_CHAR}{metric}" if self._prefix else metric
                self.experiment.define_metric(name, step_metric=STEP, summary=f"{best},last")
        self._defined |= metrics.keys()
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_model_folder(self, folder: Path) -> None:
        """Upload a folder `RUN/model` as an artifact of type model, named RUN."""
        name = re.sub(r"[^\w.-]", "-", folder.resolve().parent.name)
        self.experiment.log_artifact(str(folder), name=name, type="model")
