"""A guard against collapse: it looks at what training makes of documents, and acts before the run is lost."""

import logging
import math
from dataclasses import astuple
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from splade_lit.core.distributed import gather
from splade_lit.core.errors import UserError
from splade_lit.core.ranges import check_choice, check_range
from splade_lit.encoder.condition import (
    MAX_EMPTY_SHARE,
    MAX_SIMILARITY,
    MIN_ACTIVE_DIMS,
    Bounds,
    Condition,
    Problem,
    dense_dims,
)
from splade_lit.training.callbacks.hooks import EveryNSteps, callbacks_of, encoder_of
from splade_lit.training.callbacks.last_checkpoint import LastCheckpoint
from splade_lit.training.callbacks.loggers import log_figures

logger = logging.getLogger(__name__)

Action = Literal["warn", "lower_lambda", "stop"]

_LOWERED = 0.5
_PATIENT_SHARE = 1 / 3  # of a run whose documents start dense, until they should have come down
_LEAST_OF_TARGET = 0.2  # active dims below this share of a target are next to none
_LEAST_DOCUMENTS = 8  # that tell how a model is; the last batch of an epoch may have fewer

_WAYS: dict[Problem, str] = {
    "dead": "lower model.lambda_d, or let it rise over more steps (model.lambda_ramp_ratio)",
    "partly_dead": "lower model.lambda_d or model.learning_rate, or give the penalty l0_threshold",
    "dense": "raise model.lambda_d, or start from fewer dims (model.start_active_dims: auto)",
    "constant": "lower model.lambda_d and model.learning_rate, and look whether texts of the data differ",
}
_WAYS_WITH_TARGET: dict[Problem, str] = _WAYS | {
    "dead": "lower model.learning_rate, or start from more dims (model.start_active_dims)",
    "partly_dead": "lower model.learning_rate, or raise the target",
    "dense": "start from fewer dims (model.start_active_dims: auto)",
    "constant": "lower model.learning_rate, and look whether texts of the data differ",
}


class CollapseGuard(L.Callback):
    """Watches the vectors of training documents, and acts where nothing is learned any more.

    It speaks up where documents have next to no active dims, some have none at all, all are dense, or all alike, and,
    if it is to stop, where the loss of a step is not finite or most batches hold a single pair. Documents that start
    dense have a third of the run to come down. Logged under `guard/`: mean cosine similarity of two documents of a
    batch, share of documents without an active dim, optimizer steps whose update was left out because it was not
    finite, the factor of lambda that `lower_lambda` has come to.

    Args:
        action: `warn` says so once; `lower_lambda` also halves the weights of all penalties, again at each look where
            documents that have too few active dims or are all alike have not gained any, or as many as before have
            none; `stop` ends the run with an error that names the last checkpoint of before, and lets no later one be
            written.
        every_n_steps: optimizer steps that are looked at together.
        min_active_dims: mean active dims of a document that are next to none below this; if not given, a fifth of the
            target where the loss has one, or of where documents began if that is less, 2 at least.
        max_active_dims: mean active dims of a document that are dense above this; if not given, 5% of the vocabulary,
            of a small one 1,000 or half of it, and one and a half times the target at least where the loss has one.
        max_similarity: mean cosine similarity of two documents that makes them all alike above this.
        max_empty_share: share of documents without an active dim that is too large above this, three documents at
            least. Pairs whose text is empty never come into a batch.

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(
        self,
        action: Action = "warn",
        every_n_steps: int = 10,
        min_active_dims: float | None = None,
        max_active_dims: float | None = None,
        max_similarity: float = MAX_SIMILARITY,
        max_empty_share: float = MAX_EMPTY_SHARE,
    ) -> None:
        check_choice("CollapseGuard.action", action, get_args(Action))
        check_range("CollapseGuard", 1, every_n_steps=every_n_steps)
        check_range("CollapseGuard", 0, min_active_dims=min_active_dims, max_active_dims=max_active_dims)
        check_range("CollapseGuard", 0, 1, max_similarity=max_similarity, max_empty_share=max_empty_share)
        self.action = action
        self.min_active_dims, self.max_active_dims = min_active_dims, max_active_dims
        self.max_similarity, self.max_empty_share = max_similarity, max_empty_share
        self._timing = EveryNSteps(every_n_steps)
        self._told: list[str] = []
        self._start: float | None = None  # active dims of the first batch
        self._latest: Condition | None = None  # at the latest one
        # Sums of the figures of a `Condition` over batches since the last look, and how many had one.
        self._window = torch.zeros(2, 4)
        self._lost_before = 0  # updates before this start of the run

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to train on single pairs, if it is to stop; the DataModule has said so in any case."""
        self._timing.begin(trainer)
        divergence: Any = pl_module.divergence
        self._lost_before = divergence.state_dict()["state"][2]
        if self.action != "stop":
            return
        single, batches = trainer.datamodule.single_batches, len(trainer.train_dataloader)  # type: ignore
        if 2 * single > batches:
            count = f"{single} of {batches} batches"
            raise UserError(
                f"{count} hold a single pair, with no other document to learn from; remove copies of texts, raise "
                "data.batch_size, or give data.negative_columns."
            )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Take note of a batch; look at them where due, and at the last step."""
        batch = _window_of(pl_module)
        self._window = self._window.to(batch.device) + batch
        if self._start is None and (first := _condition(batch)):
            self._start = first.active_dims
        if self._timing.due(trainer) or trainer.global_step == trainer.estimated_stepping_batches:
            self._look(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let no checkpoint of a collapsed model take the place of one of before, if the guard is to stop."""
        if self.action == "stop" and trainer.global_step:
            for window in (self._window, _window_of(pl_module)):
                condition = _condition(window)
                if condition and condition.num_documents >= _LEAST_DOCUMENTS:
                    self._stop_if_lost(trainer, pl_module, condition)

    def state_dict(self) -> dict[str, Any]:
        """What was seen and told."""
        latest = self._latest and list(astuple(self._latest))
        return {"told": self._told, "start": self._start, "latest": latest, "window": self._window.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._told = list(state_dict["told"])
        self._start, latest = state_dict["start"], state_dict["latest"]
        self._latest = Condition(*latest) if isinstance(latest, list) else None  # of earlier versions it is a number
        window = torch.tensor(state_dict["window"])
        if window.shape == self._window.shape:  # that of earlier versions is smaller
            self._window = window

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        condition = _condition(self._window)
        if condition is None:
            return
        self._window = torch.zeros(2, 4)
        objective: Any = pl_module.objective
        if self.action == "stop":
            self._stop_if_lost(trainer, pl_module, condition)
        elif problem := self._problem(trainer, pl_module, condition):
            lowers = self.action == "lower_lambda" and problem != "dense" and not self._recovers(problem, condition)
            if lowers:
                objective.lower_penalties(_LOWERED)
            done = f"; lambda is lowered, to {float(objective.penalty_scale):.3g} of what it was" if lowers else ""
            if lowers or problem not in self._told:
                ways = "" if problem in self._told else f"; {_ways(pl_module)[problem]}"
                logger.warning("%s%s%s.", self._tell(trainer, pl_module, problem, condition), done, ways)
            self._told = sorted({*self._told, problem})
        else:
            self._told = []  # it has recovered, and is told again where it collapses again
        self._latest = condition
        divergence: Any = pl_module.divergence
        figures = {"lost_updates": divergence.lost_updates, "lambda_factor": float(objective.penalty_scale)}
        figures["empty_documents"] = condition.empty_share
        if math.isfinite(condition.similarity):
            figures["document_similarity"] = condition.similarity
        log_figures(trainer, {f"guard/{name}": value for name, value in figures.items()})

    def _recovers(self, problem: Problem, condition: Condition) -> bool:
        """Whether documents are better off than at the look before."""
        if self._latest is None:
            return False
        if problem == "partly_dead":
            return condition.empty_share < self._latest.empty_share
        return condition.active_dims > self._latest.active_dims

    def _problem(self, trainer: L.Trainer, pl_module: L.LightningModule, condition: Condition) -> Problem | None:
        objective: Any = pl_module.objective
        dense = self.max_active_dims
        if dense is None:
            dense = dense_dims(encoder_of(pl_module).vocab_size, objective.target_active_dims)
        least = self.min_active_dims
        if least is None:
            aim = objective.target_active_dims or 0
            least = max(MIN_ACTIVE_DIMS, _LEAST_OF_TARGET * min(aim, aim if self._start is None else self._start))
        problem = Bounds(dense, least, self.max_similarity, self.max_empty_share).problem(condition)
        comes_down = (self._start or 0) > dense and trainer.global_step < (
            _PATIENT_SHARE * trainer.estimated_stepping_batches
        )
        return None if problem == "dense" and comes_down else problem

    def _tell(self, trainer: L.Trainer, pl_module: L.LightningModule, problem: Problem, condition: Condition) -> str:
        dims, size = condition.active_dims, encoder_of(pl_module).vocab_size
        began = "" if self._start is None else f" (it began with {self._start:,.1f})"
        what: dict[Problem, str] = {
            "dead": f"an average document has {dims:,.1f} active dims{began}, and with none it is never found again",
            "partly_dead": f"{condition.empty_share:.0%} of the documents have no active dims and are never found, an "
            f"average one has {dims:,.1f}{began}",
            "dense": f"an average document has {dims:,.0f} active dims{began}, {dims / size:.0%} of the vocabulary",
            "constant": f"documents are all alike (mean cosine similarity {condition.similarity:.3f})",
        }
        return f"step {trainer.global_step}: training collapses: {what[problem]}"

    def _stop_if_lost(self, trainer: L.Trainer, pl_module: L.LightningModule, condition: Condition) -> None:
        """Raise a `UserError` that says why the run stops, and which checkpoint is the last good one."""
        divergence: Any = pl_module.divergence
        news = divergence.read()
        if problem := self._problem(trainer, pl_module, condition):
            why = f"{self._tell(trainer, pl_module, problem, condition)}; {_ways(pl_module)[problem]}."
        elif divergence.lost_updates > self._lost_before:
            why = news or f"step {divergence.last_lost}: the loss or its gradient is not finite."
        else:
            return
        raise UserError(f"{why} {_last_checkpoint(trainer)}")


def _ways(pl_module: L.LightningModule) -> dict[Problem, str]:
    objective: Any = pl_module.objective
    return _WAYS_WITH_TARGET if objective.targets else _WAYS


def _window_of(pl_module: L.LightningModule) -> torch.Tensor:
    """The window of the latest batch alone."""
    figures: torch.Tensor = pl_module.condition  # type: ignore[assignment]
    known = figures.isfinite()
    return torch.stack([figures.where(known, 0.0), known.float()])


def _condition(window: torch.Tensor) -> Condition | None:
    """The mean condition of the batches of a window; None where there was no batch.

    Each process has the figures of whole batches; their mean makes all of them decide alike.
    """
    sums, counts = torch.stack(gather(window.cpu())).mean(0).tolist()
    if not counts[0]:
        return None
    return Condition(sums[0] / counts[0], sums[1] / counts[1] if counts[1] else math.nan, *sums[2:])


def _last_checkpoint(trainer: L.Trainer) -> str:
    """A sentence that names the checkpoint written last."""
    kept = [(one.step, str(one.path)) for one in callbacks_of(trainer, LastCheckpoint) if one.step]
    kept += [
        (one._last_global_step_saved, one._last_checkpoint_saved)
        for one in callbacks_of(trainer, ModelCheckpoint)
        if one._last_checkpoint_saved
    ]
    if not kept:
        return "The run is stopped; it has no checkpoint of before."
    step, path = max(kept)
    return f"The run is stopped; its last checkpoint of before is {path}, of step {step}."
