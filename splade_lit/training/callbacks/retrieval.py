"""Retrieval metrics while training: before the first step, every so many steps, and at the end."""

import logging
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L

from splade_lit.core.errors import UserError
from splade_lit.core.ranges import check_range
from splade_lit.data.tasks import NANOBEIR_ID, load_tasks
from splade_lit.evaluation.bm25 import best_bm25
from splade_lit.evaluation.per_query import PER_QUERY, QueryFigures, figures_of_results, write_per_query
from splade_lit.evaluation.results import TaskResult, flat_metrics
from splade_lit.evaluation.task_evaluation import TokenisedTask, evaluate_task
from splade_lit.runs.stages import METRICS_JSON, write_stages
from splade_lit.training.callbacks.hooks import EveryNSteps, encoder_of
from splade_lit.training.callbacks.loggers import log_figures
from splade_lit.training.callbacks.phases import evaluating

logger = logging.getLogger(__name__)

STAGES = ("bm25", "before", "after")


class RetrievalEvaluation(L.Callback):
    """Evaluates retrieval under the names that sentence-transformers' evaluators give their metrics.

    `NanoBEIR_mean_dot_ndcg@10`, `NanoNQ_corpus_active_dims` and so on are there for ModelCheckpoint and EarlyStopping
    to watch; loggers get them under `val/`. The figures of the stages `bm25`, `before` and `after` go to `metrics.json`
    in the folder of the run, those of each query to `per_query.jsonl`. A run may have several, of different tasks, such
    as a small one often and a large one at the end.

    Args:
        tasks: what to evaluate on: NanoBEIR names (`msmarco`, `nfcorpus`, `nq`, ...), folders of retrieval sets in
            BEIR's or NanoBEIR's layout, `docstrings`.
        nanobeir_source: Hub id or folder that NanoBEIR names are looked up in.
        nanobeir_revision: branch, tag or commit of it on the Hub.
        every_n_steps: optimizer steps between two evaluations; none between start and end if not given.
        before: evaluate before the first step (not when a run is resumed).
        bm25: evaluate BM25 too, over words and over WordPieces, and keep the better of the two.
        max_corpus_documents: evaluate on a sample of each corpus that keeps all judged documents, at the last step for
            ModelCheckpoint too; on all if not given. `before` and `after` are always those of the whole corpus.
        cache_dir: folder of caches; the usual one if not given.

    Raises:
        UserError: a task cannot be loaded, or a setting is out of range.
    """

    def __init__(
        self,
        tasks: list[str] = ["msmarco", "nfcorpus", "nq"],  # noqa: B006 - the CLI shows it
        nanobeir_source: str = NANOBEIR_ID,
        nanobeir_revision: str | None = None,
        every_n_steps: int | None = None,
        before: bool = True,
        bm25: bool = False,
        max_corpus_documents: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        check_range("RetrievalEvaluation", 1, every_n_steps=every_n_steps, max_corpus_documents=max_corpus_documents)
        if not tasks:
            raise UserError("RetrievalEvaluation.tasks is empty; name a task, such as nq, or remove the callback.")
        self.tasks = load_tasks(tasks, nanobeir_source, nanobeir_revision, cache_dir)
        self.before = before
        self.bm25 = bm25
        self.max_corpus_documents = max_corpus_documents
        self.stages: dict[str, dict[str, float]] = {}
        self.per_query: dict[str, list[QueryFigures]] = {}
        self._timing = EveryNSteps(every_n_steps)
        self._tokenised: dict[int | None, list[TokenisedTask]] = {}

    @property
    def state_key(self) -> str:
        """Name of its state in a checkpoint."""
        return self._generate_state_key(tasks=[task.name for task in self.tasks])

    @property
    def measured(self) -> set[str]:
        """What it gives figures of: tasks, groups of tasks, and BM25."""
        groups = {f"{task.group}_mean" for task in self.tasks if task.group}
        return {task.name for task in self.tasks} | groups | ({"bm25"} if self.bm25 else set())

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that no other one measures the same.

        Raises:
            UserError: one does.
        """
        others = [one for one in retrieval_evaluations(trainer) if one is not self]
        if both := sorted(self.measured & {name for one in others for name in one.measured}):
            raise UserError(
                f"Two RetrievalEvaluation callbacks both measure {', '.join(both)}; leave it to one of them."
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate BM25 and the model as it starts, unless a run is resumed."""
        if not trainer.is_global_zero:
            return
        if trainer.ckpt_path is None:
            if self.bm25:
                with evaluating(trainer):
                    figures, results = best_bm25(self.tasks, encoder_of(pl_module).tokenizer)
                self._keep("bm25", figures, results)
            if self.before:
                results = self._evaluate(pl_module, None)
                self._keep("before", flat_metrics(results), results)
        self._write(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the figures that a finished run ended with: it is made longer."""
        if trainer.is_global_zero and "after" in self.stages:
            del self.stages["after"]
            self.per_query.pop("after", None)
            self._write(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Evaluate, where due, and log; the last step is always due, so that ModelCheckpoint sees it."""
        last = trainer.global_step >= trainer.estimated_stepping_batches and "after" not in self.stages
        if not (self._timing.due(trainer) or last) or not trainer.is_global_zero:
            return
        results = self._evaluate(pl_module, self.max_corpus_documents)
        metrics = flat_metrics(results)
        pl_module.log_dict(metrics, logger=False, rank_zero_only=True)
        self._log(trainer, metrics)
        if last:
            self._finish(trainer, results if self.max_corpus_documents is None else self._evaluate(pl_module, None))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate a model whose run has ended before its last step."""
        if trainer.is_global_zero and "after" not in self.stages:
            results = self._evaluate(pl_module, None)
            self._log(trainer, flat_metrics(results))
            self._finish(trainer, results)

    def state_dict(self) -> dict[str, Any]:
        """Figures of the stages done, so that a resumed run keeps them."""
        per_query = {stage: [asdict(figures) for figures in tasks] for stage, tasks in self.per_query.items()}
        return {"stages": self.stages, "per_query": per_query}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the stages of a checkpoint."""
        self.stages = state_dict["stages"]
        per_query = state_dict.get("per_query", {})  # checkpoints of earlier versions have none
        self.per_query = {stage: [QueryFigures(**figures) for figures in tasks] for stage, tasks in per_query.items()}

    def _evaluate(self, pl_module: L.LightningModule, max_corpus_documents: int | None) -> list[TaskResult]:
        encoder = encoder_of(pl_module)
        if max_corpus_documents not in self._tokenised:
            self._tokenised[max_corpus_documents] = [
                TokenisedTask.of(task, encoder, max_corpus_documents=max_corpus_documents) for task in self.tasks
            ]
        tasks = self._tokenised[max_corpus_documents]
        with evaluating(pl_module.trainer):
            results = [evaluate_task(encoder, task, show_progress_bar=True) for task in tasks]
        logger.info(
            "step %d: mean nDCG@10 %.4f, %.1f active dims a document",
            pl_module.trainer.global_step,
            *(mean(result.metrics[name] for result in results) for name in ("ndcg@10", "corpus_active_dims")),
        )
        return results

    def _log(self, trainer: L.Trainer, metrics: dict[str, float]) -> None:
        log_figures(trainer, {f"val/{name}": value for name, value in metrics.items()})

    def _finish(self, trainer: L.Trainer, results: list[TaskResult]) -> None:
        self._keep("after", flat_metrics(results), results)
        self._write(trainer)

    def _keep(self, stage: str, figures: dict[str, float], results: list[TaskResult]) -> None:
        self.stages[stage] = figures
        self.per_query[stage] = figures_of_results(self.tasks, results)

    def _write(self, trainer: L.Trainer) -> None:
        folder = Path(trainer.default_root_dir)
        write_stages(folder / METRICS_JSON, merged_stages(trainer))
        per_query = {
            stage: [figures for one in retrieval_evaluations(trainer) for figures in one.per_query.get(stage, ())]
            for stage in STAGES
        }
        write_per_query(folder / PER_QUERY, per_query)


def retrieval_evaluations(trainer: L.Trainer) -> list[RetrievalEvaluation]:
    """Those of a run."""
    return [callback for callback in trainer.callbacks if isinstance(callback, RetrievalEvaluation)]  # type: ignore[attr-defined]


def merged_stages(trainer: L.Trainer) -> dict[str, dict[str, float]]:
    """The figures of all evaluations of a run, by stage."""
    stages: dict[str, dict[str, float]] = {}
    for name in STAGES:
        for one in retrieval_evaluations(trainer):
            if name in one.stages:
                stages[name] = stages.get(name, {}) | one.stages[name]
    return stages
