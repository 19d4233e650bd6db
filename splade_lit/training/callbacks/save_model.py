"""The end of a run: its model in a folder, with a card on the model and how it was made."""

import time
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch

from splade_lit.card import facts
from splade_lit.card.record import README, Card, Retrieval, SparsityFacts, TaskFacts, Training, from_plain, write_record
from splade_lit.card.render import model_card
from splade_lit.core.files import replace_text
from splade_lit.core.ranges import LARGEST_SEED, check_range
from splade_lit.data.datamodule import PairsDataModule
from splade_lit.data.pairs import DOCSTRINGS
from splade_lit.encoder.check_saved import check_saved
from splade_lit.losses.objective import Objective
from splade_lit.runs.folder import MODEL
from splade_lit.runs.machine import hardware, package_versions
from splade_lit.runs.run import Run
from splade_lit.runs.stages import by_set, headline_figures
from splade_lit.training.callbacks.carbon import CarbonTracker
from splade_lit.training.callbacks.hooks import PhaseCallback, callbacks_of, encoder_of
from splade_lit.training.callbacks.retrieval import RetrievalEvaluation
from splade_lit.training.callbacks.sparsity_monitor import SparsityMonitor
from splade_lit.training.callbacks.wandb_log import WandbLog

_COMPARED_PAIRS = 4


class SaveModel(PhaseCallback):
    """Saves the model of a finished run to `model/` in its folder, with its card.

    `card.json` holds the content of the card; `python -m splade_lit.card` makes `README.md` of it again. Every number
    comes from the run's own files, from the texts, or from the model itself; the network is not asked.

    The card (`README.md` and `card.json`) quotes texts of the data: the first pairs, and a few drawn from those held
    out of training, or from all where none are held out. Whoever gets the folder can read them; `sample_texts: false`
    leaves them out.

    Args:
        name: title of the card; made of the names of base model and data set if not given.
        model_id: id that the model will have on the Hub; its examples load it by that.
        license: license of the model by the Hub's short name, such as apache-2.0 or mit; null for none.
        language: languages of the texts, by their codes of ISO 639-1.
        seed: of the choice of texts that the card shows.
        sample_texts: quote texts of the data in the card: samples, an example with its scores, texts to try.

    Raises:
        UserError: the seed is out of range.
    """

    def __init__(
        self,
        name: str | None = None,
        model_id: str | None = None,
        license: str | None = "apache-2.0",
        language: list[str] = ["en"],  # noqa: B006 - the CLI shows it
        seed: int = 0,
        sample_texts: bool = True,
    ) -> None:
        check_range("SaveModel", 0, LARGEST_SEED, seed=seed)
        self.name = name
        self.model_id = model_id
        self.license = license
        self.language = list(language)
        self.seed = seed
        self.sample_texts = sample_texts
        self._seconds: dict[str, float] = {}
        self._since: float | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the clock."""
        if stage == "fit":
            self._since = time.perf_counter()

    def on_phase_end(self, trainer: L.Trainer | None = None) -> None:
        """Add the time until now to the phase that ends."""
        if self._since is not None:
            now = time.perf_counter()
            self._seconds[self.phase] = self._seconds.get(self.phase, 0.0) + now - self._since
            self._since = now

    def state_dict(self) -> dict[str, Any]:
        """The time that the run has taken until now."""
        self.on_phase_end()
        return {"seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._seconds = dict(state_dict["seconds"])

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the model, check that it is the trained one, write its card, upload both where a logger is asked to."""
        self.on_phase_end()
        if not trainer.is_global_zero:
            return
        for callback in callbacks_of(trainer, CarbonTracker):
            callback.finish(trainer)
        for logger in trainer.loggers:
            logger.save()
        folder = Path(trainer.default_root_dir) / MODEL
        encoder, pairs = encoder_of(pl_module), trainer.datamodule.train_pairs  # type: ignore[attr-defined]
        encoder.save(folder)
        texts = [text for row in range(min(_COMPARED_PAIRS, len(pairs))) for text in pairs[row].values()]
        check_saved(encoder, folder, texts, pl_module.hparams["trust_remote_code"])
        card = self.card(trainer, pl_module)
        write_record(card, folder)
        replace_text(folder / README, model_card(card))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLog) and logger.model_artifact:
                logger.log_model_folder(folder)

    def card(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Card:
        """All that there is to say of a run with a `SpladeModule` and a `PairsDataModule`."""
        encoder = encoder_of(pl_module)
        data = cast(PairsDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        run = Run.of(Path(trainer.default_root_dir))
        base = facts.base_source(pl_module.hparams["base_model"], pl_module.hparams["base_revision"])
        trained_on = facts.pairs_source(data.train_pairs)
        shown = data.eval_pairs if len(data.eval_rows) else data.train_pairs
        tasks = [
            TaskFacts(task.name, task.group, len(task.queries), len(task.corpus), task.graded)
            for callback in callbacks_of(trainer, RetrievalEvaluation)
            for task in callback.tasks
        ]
        reports = [report for callback in callbacks_of(trainer, SparsityMonitor)[:1] for report in callback.rows]
        return Card(
            name=self.name or f"Inference-free SPLADE {base.name} trained on {trained_on.name}",
            model=facts.model_facts(encoder, base),
            model_id=self.model_id,
            license=self.license,
            language=self.language,
            example=facts.example(encoder, shown, self.seed) if self.sample_texts else None,
            widget=facts.widget_texts(shown, self.seed) if self.sample_texts else [],
            training=self._training(trainer, pl_module, data, run),
            retrieval=Retrieval(tasks, run.stages) if tasks else None,
            sparsity=from_plain(SparsityFacts, reports[-1]) if reports else None,
            footprint=run.footprint,
            versions=package_versions(),
        )

    def _training(self, trainer: L.Trainer, pl_module: L.LightningModule, data: PairsDataModule, run: Run) -> Training:
        encoder, objective = encoder_of(pl_module), cast(Objective, pl_module.objective)
        settings = run.config or {"model": dict(pl_module.hparams)}  # of a run without a YAML file, the module's
        given = settings.get("data")
        columns = None  # what the data set itself calls its columns, if it is one of columns
        if given and given["source"] != DOCSTRINGS:
            columns = [given["query_column"], given["document_column"]]
            columns += [*given.get("positive_columns", ()), *given["negative_columns"]]
        train = facts.pairs_facts(data.train_pairs, encoder, columns, self.sample_texts)
        assert train is not None  # a run without pairs does not begin
        after = run.stages.get("after", {})
        gpus = trainer.device_ids if trainer.strategy.root_device.type == "cuda" else []
        classes = {"model": type(pl_module), "data": type(data), "trainer": L.Trainer}
        return Training(
            train=train,
            eval=facts.pairs_facts(data.eval_pairs, encoder, columns, self.sample_texts),
            loss=objective.settings,
            hyperparameters=facts.hyperparameters(settings, classes),
            log=facts.log_facts(
                run.log,
                steps_per_epoch=float(trainer.num_training_batches) / trainer.accumulate_grad_batches,
                parts=list(objective.parts),
                tasks=list(by_set(after)),
                main_metric=next(iter(headline_figures(after)), None),
            ),
            seconds=dict(self._seconds),
            hardware=hardware([torch.cuda.get_device_name(index) for index in gpus]),
            parts=objective.facts(),
        )
