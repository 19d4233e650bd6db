"""`config.yaml`, the resolved configuration of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from splade_lit.core.errors import UserError
from splade_lit.core.renamed import current_names

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Evaluation:
    """What a run was evaluated on: arguments of `load_tasks`, and the size of the sample of each corpus while training.

    The sample is None where the whole corpus was searched.
    """

    tasks: tuple[str, ...]
    nanobeir_source: str | None = None
    nanobeir_revision: str | None = None
    max_corpus_documents: int | None = None


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a run by group: `model`, `data`, `trainer`; none if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return dict(yaml.safe_load(current_names(path.read_text(encoding="utf-8"), str(path))))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not the resolved configuration of a run; restore it, or move it away.") from error


def evaluations(config: Mapping[str, Any]) -> tuple[Evaluation, ...]:
    """What a run was evaluated on, as far as its settings say."""
    trainer = config.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    found = []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(callback, dict) and str(callback.get("class_path")).endswith("RetrievalEvaluation"):
            given = callback.get("init_args") or {}
            names = ("nanobeir_source", "nanobeir_revision", "max_corpus_documents")
            found.append(Evaluation(tuple(map(str, given.get("tasks") or ())), *map(given.get, names)))
    return tuple(found)
