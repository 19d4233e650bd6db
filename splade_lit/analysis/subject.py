"""What is looked into: a model, with the run that made it where there is one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32

from splade_lit.core.errors import UserError
from splade_lit.data.datamodule import ENCODER_SETTINGS, PairsDataModule
from splade_lit.data.tasks import RetrievalTask
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.start import set_start, untrained_encoder
from splade_lit.evaluation.bm25 import best_bm25, bm25_result
from splade_lit.evaluation.results import TaskResult
from splade_lit.runs.config import CONFIG
from splade_lit.runs.run import Run, read_run
from splade_lit.runs.stages import over_wordpieces

T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A model to look into, with the run that made it, if there is one."""

    name: str
    encoder: AsymmetricSparseEncoder
    run: Run | None = None

    @property
    def tokens(self) -> list[str]:
        """The token of each dim."""
        ids = list(range(self.encoder.vocab_size))
        return list(map(str, self.encoder.tokenizer.convert_ids_to_tokens(ids)))

    def required_run(self) -> Run:
        """The run.

        Raises:
            UserError: there is none.
        """
        if self.run is None:
            raise UserError(
                f"{self.name} is a model without its run; give the folder of a run, such as runs/quickstart."
            )
        return self.run


def open_subject(source: str | Path) -> Subject:
    """Open a model.

    Args:
        source: folder of a run of `splade_lit.fit`, folder of a saved model (sentence-transformers' format), or Hub id.

    Raises:
        UserError: there is no such model, or the run has not finished.
    """
    folder = Path(source).expanduser()
    if not (folder / CONFIG).is_file():
        return Subject(folder.name, AsymmetricSparseEncoder.load(source))
    run = read_run(folder)
    if run.model is None:
        raise UserError(f"{source} has no model/ yet; let the run finish, or resume it.")
    try:
        _ = run.config["model"]["base_model"], run.config["model"]["idf"], run.config["data"]["source"]
    except (TypeError, KeyError) as error:
        raise UserError(f"{folder / CONFIG} is not the resolved configuration of a run; give another run.") from error
    return Subject(folder.resolve().name, AsymmetricSparseEncoder.load(run.model), run)


def training_data(subject: Subject) -> PairsDataModule:
    """The pairs that a run was trained on, tokenised as for training.

    Raises:
        UserError: there is no run, or its data cannot be read any more.
    """
    config = subject.required_run().config
    settings = config["data"] | {name: getattr(subject.encoder, name) for name in ENCODER_SETTINGS}
    data = PairsDataModule(**settings)
    data.setup()
    return data


def initial_encoder(subject: Subject, data: PairsDataModule) -> AsymmetricSparseEncoder:
    """The model that a run started from, made again from its settings and its `training_data`.

    Raises:
        UserError: there is no run, or its base model cannot be read any more.
    """
    settings = subject.required_run().config["model"]
    encoder = untrained_encoder(settings)
    set_start(encoder, data, settings["idf"], settings.get("start_active_dims"))
    return encoder.eval()


def query_weights(encoder: AsymmetricSparseEncoder) -> Float32[np.ndarray, " vocab"]:
    """A copy of the query table."""
    return encoder.idf_weights.detach().cpu().numpy().copy()


def bm25_on(subject: Subject, task: RetrievalTask) -> TaskResult:
    """BM25 on a task, over words or WordPieces: what the run was compared with, else the better of the two here."""
    stages = subject.run.stages if subject.run else {}
    if "bm25" not in stages:
        return best_bm25([task], subject.encoder.tokenizer)[1][0]
    return bm25_result(task, subject.encoder.tokenizer if over_wordpieces(stages["bm25"]) else None)


def if_possible(function: Callable[..., T], *arguments: Any) -> T | None:
    """What the function gives, or None and a printed sentence where the subject lacks what it needs."""
    try:
        return function(*arguments)
    except UserError as reason:
        print(f"Left out: {reason}")
        return None
