"""Retrieval metrics while training: before the first step, every so many steps, and at the end."""

import logging
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from splade_lit.command_line.arguments import did_you_mean
from splade_lit.core.distributed import from_first
from splade_lit.core.errors import UserError
from splade_lit.core.files import cache_folder
from splade_lit.core.ranges import check_range
from splade_lit.data.tasks import NANOBEIR_ID, load_tasks
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.evaluation.bm25 import best_bm25
from splade_lit.evaluation.measures import measure_names
from splade_lit.evaluation.per_query import PER_QUERY, QueryFigures, figures_of_results, write_per_query
from splade_lit.evaluation.results import figure_names, flat_metrics
from splade_lit.evaluation.reuse import StageFigures, model_fingerprint, reused, task_fingerprint
from splade_lit.evaluation.task_evaluation import TokenisedTask, evaluate_task, with_measures, without_own_documents
from splade_lit.runs.stages import METRICS_JSON, write_stages
from splade_lit.training.callbacks.hooks import EveryNSteps, callbacks_of, encoder_of, evaluating
from splade_lit.training.callbacks.loggers import log_figures

logger = logging.getLogger(__name__)

STAGES = ("bm25", "before", "after")
_SHOWN = ("dot_ndcg@10", "corpus_active_dims")


class RetrievalEvaluation(L.Callback):
    """Evaluates retrieval under the names that sentence-transformers' evaluators give their metrics.

    ModelCheckpoint and EarlyStopping can watch `NanoBEIR_mean_dot_ndcg@10`, `NanoNQ_corpus_active_dims` and so on, on
    every rank, and a measure that is asked for as `NanoNQ_dot_R@1000`; loggers get them under `val/`. Where one of
    those two looks after a validation, an epoch or a number of steps of its own, the model is evaluated then as well,
    so that it never sees figures of an earlier step. Figures of the stages `bm25`, `before` and `after` go to
    `metrics.json` in the folder of the run, those of each query to `per_query.jsonl`. A run may have several of these
    callbacks, of different tasks: a small one often, a large one at the end. Where a run has several processes, each
    encodes its share of the corpus.

    Args:
        tasks: what to evaluate on: NanoBEIR names (`msmarco`, `nfcorpus`, `nq`, ...), folders in BEIR's, MS MARCO's,
            TREC's (`FOLDER` or `FOLDER:SPLIT`) or NanoBEIR's layout, `irds:` and an id of ir_datasets, `docstrings`.
        nanobeir_source: Hub id or folder that NanoBEIR names are looked up in.
        nanobeir_revision: branch, tag or commit of it on the Hub.
        every_n_steps: optimizer steps between two evaluations; none between start and end if not given.
        before: evaluate before the first step (not when a run is resumed).
        bm25: evaluate BM25 too, over words and over WordPieces, and keep the better of the two.
        measures: names of measures of the library ir_measures that are computed beside the metrics, such as `nDCG@10`,
            `RR@10`, `R@1000`, `AP(rel=2)@100`; rankings are as deep as they ask, 1,000 for one without a cut-off.
        reuse: take the figures of `before` and `bm25` from the cache where an earlier run measured the same ones: same
            weights, settings, texts, judgements and versions.
        leave_out_queries: leave the document with a query's own id out of its ranking, as BEIR does for ArguAna and
            Quora; if not given, in BEIR folders whose queries are documents too.
        max_corpus_documents: evaluate on a sample of each corpus that keeps all judged documents, at the last step for
            ModelCheckpoint too; on all if not given. `before` and `after` are always those of the whole corpus.
        cache_dir: folder of caches; the usual one if not given.

    Raises:
        UserError: a task cannot be loaded, a setting is out of range, or a measure cannot be computed.
    """

    def __init__(
        self,
        tasks: list[str] = ["msmarco", "nfcorpus", "nq"],  # noqa: B006 - the CLI shows it
        nanobeir_source: str = NANOBEIR_ID,
        nanobeir_revision: str | None = None,
        every_n_steps: int | None = None,
        before: bool = True,
        bm25: bool = False,
        measures: list[str] = [],  # noqa: B006 - the CLI shows it
        reuse: bool = True,
        leave_out_queries: bool | None = None,
        max_corpus_documents: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        check_range("RetrievalEvaluation", 1, every_n_steps=every_n_steps, max_corpus_documents=max_corpus_documents)
        if not tasks:
            raise UserError("RetrievalEvaluation.tasks is empty; name a task, such as nq, or remove the callback.")
        names = measure_names(measures)
        loaded = load_tasks(tasks, nanobeir_source, nanobeir_revision, cache_dir)
        self.tasks = with_measures(without_own_documents(loaded, leave_out_queries), names)
        self.every_n_steps = every_n_steps
        self.before = before
        self.bm25 = bm25
        self.reuse = reuse
        self.max_corpus_documents = max_corpus_documents
        self.cache_dir = cache_folder(cache_dir)
        self.kept: dict[str, StageFigures] = {}
        self._timing = EveryNSteps(every_n_steps)
        self._watched = False
        self._latest: tuple[tuple[int, int | None], StageFigures] | None = None
        self._tokenised: dict[int | None, list[TokenisedTask]] = {}

    @property
    def stages(self) -> dict[str, dict[str, float]]:
        """Stage to its figures by full name."""
        return {name: stage.figures for name, stage in self.kept.items()}

    @property
    def state_key(self) -> str:
        """Name of its state in a checkpoint."""
        return self._generate_state_key(tasks=[task.name for task in self.tasks])

    @property
    def measured(self) -> set[str]:
        """Names of the tasks and groups that it measures, and `bm25`."""
        groups = {f"{task.group}_mean" for task in self.tasks if task.group}
        return {task.name for task in self.tasks} | groups | ({"bm25"} if self.bm25 else set())

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that no other one measures the same, and find out who watches the figures, and when."""
        others = [one for one in callbacks_of(trainer, RetrievalEvaluation) if one is not self]
        if both := sorted(self.measured & {name for one in others for name in one.measured}):
            raise UserError(
                f"Two RetrievalEvaluation callbacks both measure {', '.join(both)}; leave it to one of them."
            )
        # A ModelCheckpoint looks after so many steps, or, as EarlyStopping does, after a validation or an epoch.
        names = figure_names(self.tasks)
        steps = {getattr(one, "_every_n_train_steps", 0) for one in _watchers(trainer) if one.monitor in names}
        self._watched = 0 in steps
        self._timing = EveryNSteps(self.every_n_steps, *steps)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate BM25 and the model as it starts, unless a run is resumed."""
        if trainer.ckpt_path is None:
            encoder = encoder_of(pl_module)
            cache = self.cache_dir if self.reuse else None
            with evaluating(trainer):
                for stage, wanted, fingerprint, measure in (
                    ("bm25", self.bm25, task_fingerprint, self._bm25_figures),
                    ("before", self.before, model_fingerprint, self._figures),
                ):
                    if wanted:
                        key = partial(fingerprint, self.tasks, encoder)
                        self.kept[stage] = reused(cache, stage, key, partial(measure, encoder))
            if self.before:
                self._log_means(0, self.kept["before"])
        self._write(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the figures that a finished run ended with: it is made longer."""
        self._timing.begin(trainer)
        if self.kept.pop("after", None):
            self._write(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Evaluate, where due, and log; the last step is always due, so that ModelCheckpoint sees it."""
        last = trainer.global_step >= trainer.estimated_stepping_batches and "after" not in self.kept
        if not (self._timing.due(trainer) or last):
            return
        shown = self._show(trainer, pl_module)
        if last:
            self.kept["after"] = shown if self.max_corpus_documents is None else self._evaluate(pl_module, None)
            self._write(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate for a callback that looks after the validation, or the epoch."""
        if self._watched and not trainer.sanity_checking:
            self._show(trainer, pl_module)

    on_train_epoch_end = on_validation_epoch_end

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate a model whose run has ended before its last step."""
        if "after" not in self.kept:
            self.kept["after"] = self._evaluate(pl_module, None)
            self._log(trainer, self.kept["after"])
            self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Figures of the stages done, so that a resumed run keeps them."""
        per_query = {name: [asdict(task) for task in stage.per_query] for name, stage in self.kept.items()}
        return {"stages": self.stages, "per_query": per_query}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the stages of a checkpoint."""
        per_query = state_dict.get("per_query", {})  # checkpoints of earlier versions have none
        self.kept = {
            name: StageFigures(figures, [QueryFigures(**task) for task in per_query.get(name, [])])
            for name, figures in state_dict["stages"].items()
        }

    def _bm25_figures(self, encoder: AsymmetricSparseEncoder) -> StageFigures:
        def measure() -> StageFigures:
            figures, results = best_bm25(self.tasks, encoder.tokenizer)
            return StageFigures(figures, figures_of_results(self.tasks, results))

        return from_first(measure)  # nobody watches these, and the others have nothing to do until training starts

    def _figures(self, encoder: AsymmetricSparseEncoder, max_corpus_documents: int | None = None) -> StageFigures:
        tokenised = self._tokenised.get(max_corpus_documents) or [
            TokenisedTask.of(task, encoder, max_corpus_documents=max_corpus_documents) for task in self.tasks
        ]
        self._tokenised[max_corpus_documents] = tokenised
        results = [evaluate_task(encoder, task, show_progress_bar=True) for task in tokenised]
        return StageFigures(flat_metrics(results), figures_of_results(self.tasks, results))

    def _evaluate(self, pl_module: L.LightningModule, max_corpus_documents: int | None) -> StageFigures:
        """Figures of the model after this step, measured once."""
        key = pl_module.trainer.global_step, max_corpus_documents
        if self._latest is None or self._latest[0] != key:
            with evaluating(pl_module.trainer):
                self._latest = key, self._figures(encoder_of(pl_module), max_corpus_documents)
            self._log_means(key[0], self._latest[1])
        return self._latest[1]

    def _show(self, trainer: L.Trainer, pl_module: L.LightningModule) -> StageFigures:
        """Evaluate for the log and for callbacks that watch."""
        shown = self._evaluate(pl_module, self.max_corpus_documents)
        pl_module.log_dict(shown.figures, logger=False)
        self._log(trainer, shown)
        return shown

    def _log_means(self, step: int, measured: StageFigures) -> None:
        means = (mean(measured.figures[f"{task.name}_{name}"] for task in self.tasks) for name in _SHOWN)
        logger.info("step %d: mean nDCG@10 %.4f, %.1f active dims a document", step, *means)

    def _log(self, trainer: L.Trainer, measured: StageFigures) -> None:
        log_figures(trainer, {f"val/{name}": value for name, value in measured.figures.items()})

    def _write(self, trainer: L.Trainer) -> None:
        """Write the figures of all evaluations of the run."""
        if not trainer.is_global_zero:
            return
        stages: dict[str, dict[str, float]] = {}
        per_query: dict[str, list[QueryFigures]] = {}
        for name, one in product(STAGES, callbacks_of(trainer, RetrievalEvaluation)):
            if name in one.kept:
                stages[name] = stages.get(name, {}) | one.kept[name].figures
                per_query[name] = per_query.get(name, []) + one.kept[name].per_query
        folder = Path(trainer.default_root_dir)
        write_stages(folder / METRICS_JSON, stages)
        write_per_query(folder / PER_QUERY, per_query)


def check_watched(trainer: L.Trainer, logged: set[str], has_held_out: bool) -> None:
    """Check that callbacks watch what retrieval measures or the module logs, as far as can be known before the run.

    Args:
        trainer: of the run.
        logged: names that the module logs, those under `val/` of held-out pairs.
        has_held_out: whether there are such pairs.

    Raises:
        UserError: one is not.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if not all(type(one).__module__.startswith(("splade_lit.", "lightning.")) for one in callbacks):
        return  # a callback of the user's own may log anything
    known = logged.union(*(figure_names(one.tasks) for one in callbacks_of(trainer, RetrievalEvaluation)))
    for watcher in _watchers(trainer):
        if not has_held_out and watcher.monitor in {name for name in logged if name.startswith("val/")}:
            of_pairs = f"{watcher.monitor}, a figure of held-out pairs"
            raise UserError(f"{type(watcher).__name__} watches {of_pairs}; set data.num_eval_pairs.")
        if watcher.monitor not in known:
            problem = f"{type(watcher).__name__} watches {watcher.monitor}, which nothing in this run measures"
            raise UserError(f"{problem}{did_you_mean(str(watcher.monitor), known)}")


def _watchers(trainer: L.Trainer) -> list[Any]:
    """The callbacks of a run that watch a metric."""
    watching: list[Any] = [*callbacks_of(trainer, EarlyStopping), *callbacks_of(trainer, ModelCheckpoint)]
    return [callback for callback in watching if callback.monitor]
