"""A run as its folder tells it, whole or not: what report, card and analysis build on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from splade_lit.core.errors import UserError
from splade_lit.evaluation.per_query import PER_QUERY, QueryFigures, read_per_query
from splade_lit.runs.config import CONFIG, Evaluation, read_config
from splade_lit.runs.emissions import EMISSIONS, Footprint, footprint, read_emissions
from splade_lit.runs.folder import CHECKPOINTS, MODEL, read_checkpoint
from splade_lit.runs.log import LOG, Log, read_log
from splade_lit.runs.stages import METRICS_JSON, Stages, read_json, read_stages

CARD_JSON = "card.json"
_FILES = (METRICS_JSON, LOG, PER_QUERY, CONFIG, EMISSIONS)


@dataclass(frozen=True)
class Run:
    """What a run has left; what it has not left is empty, and its footprint None where nobody counted.

    Settings are by group, figures by stage, and those of single queries by stage and task.
    """

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    stages: Stages = field(default_factory=dict)
    log: Log = field(default_factory=dict)
    per_query: Mapping[str, Sequence[QueryFigures]] = field(default_factory=dict)
    footprint: Footprint | None = None

    @classmethod
    def of(cls, folder: Path) -> "Run":
        """Read what there is; a UserError if a file is damaged."""
        return cls(
            folder,
            read_config(folder / CONFIG),
            read_stages(folder / METRICS_JSON),
            read_log(folder / LOG),
            read_per_query(folder / PER_QUERY),
            footprint(read_emissions(folder / EMISSIONS)),
        )

    @property
    def model(self) -> Path | None:
        """Folder of its model, None if it has none yet."""
        model = self.folder / MODEL
        return model if (model / "modules.json").is_file() else None

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """What it was evaluated on, as far as its settings say."""
        trainer = self.config.get("trainer")
        callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
        found = []
        for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
            if isinstance(callback, dict) and str(callback.get("class_path")).endswith("RetrievalEvaluation"):
                given = callback.get("init_args") or {}
                names = ("nanobeir_source", "nanobeir_revision", "max_corpus_documents")
                found.append(Evaluation(tuple(map(str, given.get("tasks") or ())), *map(given.get, names)))
        return tuple(found)

    @cached_property
    def training_seconds(self) -> float | None:
        """Time of training without evaluation, as counted or else as its model's card has it; None if neither says.

        A UserError says that the record of the card is damaged.
        """
        path = self.folder / MODEL / CARD_JSON
        if self.footprint is not None:
            training = self.footprint.stages.get("training")
            return training.seconds if training else None
        try:
            card = read_json(path) if path.is_file() else {"training": None}
            seconds = ((card["training"] or {}).get("seconds") or {}).get("training")
            return None if seconds is None else float(seconds)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a card's record; delete it to go without.") from error

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Optimizer steps and path of each checkpoint, one a step, in order; a UserError if one is damaged."""
        paths = sorted((self.folder / CHECKPOINTS).glob("*.ckpt"))
        steps = {int(read_checkpoint(path, resumable=False)["global_step"]): path for path in paths}
        return sorted(steps.items())


def read_run(folder: Path) -> Run:
    """The run of a folder, or of one with the metrics.json and per_query.jsonl that `evaluate` writes.

    A UserError says that there is none, or that one of its files is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give that of a run, such as runs/quickstart.")
    if not any((folder / name).is_file() for name in _FILES):
        raise UserError(f"{folder} holds no run (none of {', '.join(_FILES)}); give the folder of a run.")
    return Run.of(folder)
