"""`config.yaml`, the resolved configuration of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from splade_lit.core.errors import UserError
from splade_lit.core.renamed import current_names

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Evaluation:
    """Arguments of `load_tasks`, and the size of the sample of each corpus while training; None for no sample."""

    tasks: tuple[str, ...]
    nanobeir_source: str | None = None
    nanobeir_revision: str | None = None
    max_corpus_documents: int | None = None


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a run by group, such as `model`; none if there is no file, a UserError if it is damaged."""
    if not path.is_file():
        return {}
    try:
        return dict(yaml.safe_load(current_names(path.read_text(encoding="utf-8"), str(path))))
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not the resolved configuration of a run; restore it, or move it away.") from error
