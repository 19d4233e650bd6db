"""The strongest terms of a few documents while the model trains, those in the text and those added to it."""

import json
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from splade_lit.core.files import replace_text
from splade_lit.core.ranges import LARGEST_SEED, check_range
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.rows import split_rows
from splade_lit.training.callbacks.hooks import EveryNSteps, encoder_of
from splade_lit.training.callbacks.loggers import log_table
from splade_lit.training.callbacks.phases import evaluating

TABLE = "terms/documents"
COLUMNS = ("step", "example", "query", "document", "active_dims", "expansion_share", "terms_in_text", "expansions")
_LONGEST_TEXT = 300  # characters that are shown


@dataclass(frozen=True)
class Term:
    """A term of a document with its weight, and whether the text holds it; if not, it is an expansion."""

    term: str
    weight: float
    in_text: bool


@dataclass(frozen=True)
class DocumentTerms:
    """A document as the model sees it after some optimizer steps.

    Attributes:
        step: optimizer steps done.
        example: number of the document, from 0.
        query: the query that it answers.
        document: its text, shortened.
        active_dims: terms in all.
        expansion_share: share of the weights of all terms that expansions have.
        terms: the strongest terms, the strongest first.
    """

    step: int
    example: int
    query: str
    document: str
    active_dims: int
    expansion_share: float
    terms: list[Term]

    @classmethod
    def from_plain(cls, row: dict[str, Any]) -> "DocumentTerms":
        """From its `asdict`."""
        return cls(**(row | {"terms": [Term(**term) for term in row["terms"]]}))

    @property
    def cells(self) -> list[Any]:
        """The row of a table with `COLUMNS`."""
        in_text, expansions = (
            "  ".join(f"{term.term} {term.weight:.2f}" for term in self.terms if term.in_text is kind)
            for kind in (True, False)
        )
        texts = [self.query, self.document]
        return [self.step, self.example, *texts, self.active_dims, round(self.expansion_share, 4), in_text, expansions]


class TermTable(L.Callback):
    """Shows the strongest terms of the same few documents as training goes on, with a row a document each time.

    The documents are drawn from the pairs held out of training, or from all where none are held out. They are looked at
    before the first step, every so many optimizer steps and at the end. Rows go to `terms.jsonl` in the folder of the
    run, with the weight of each term and whether the text holds it or it is an expansion; W&B and TensorBoard show them
    as the table `terms/documents`.

    The table quotes queries and documents of the data, up to 300 characters each, and a W&B run that is synchronised
    uploads it: leave this callback out where the texts must stay on the machine.

    Args:
        every_n_steps: optimizer steps between two looks.
        num_documents: how many documents.
        num_terms: how many terms of each.
        seed: of the choice of documents.

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(self, every_n_steps: int = 500, num_documents: int = 5, num_terms: int = 20, seed: int = 0) -> None:
        check_range("TermTable", 1, every_n_steps=every_n_steps, num_documents=num_documents, num_terms=num_terms)
        check_range("TermTable", 0, LARGEST_SEED, seed=seed)
        self.num_documents = num_documents
        self.num_terms = num_terms
        self.seed = seed
        self.rows: list[DocumentTerms] = []
        self._timing = EveryNSteps(every_n_steps)
        self._pairs: list[dict[str, str]] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the model as it starts, unless a run is resumed."""
        if not self.rows:
            self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Look, where due."""
        if self._timing.due(trainer):
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the final model, unless that has just been done."""
        if not self.rows or self.rows[-1].step != trainer.global_step:
            self._look(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, as plain types."""
        return {"rows": [asdict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the rows of a checkpoint."""
        self.rows = [DocumentTerms.from_plain(row) for row in state_dict["rows"]]

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if self._pairs is None:
            self._pairs = _draw(trainer.datamodule, self.num_documents, self.seed)  # type: ignore[attr-defined]
        with evaluating(trainer):
            rows = document_terms(encoder_of(pl_module), self._pairs, self.num_terms, trainer.global_step)
        self.rows += rows
        lines = [json.dumps(asdict(row), ensure_ascii=False) for row in self.rows]
        replace_text(Path(trainer.default_root_dir) / "terms.jsonl", "\n".join(lines) + "\n")
        log_table(trainer, TABLE, COLUMNS, [row.cells for row in self.rows], num_new=len(rows))


def document_terms(
    encoder: AsymmetricSparseEncoder, pairs: list[dict[str, str]], num_terms: int, step: int
) -> list[DocumentTerms]:
    """The strongest terms of each document.

    Args:
        encoder: the model.
        pairs: texts `query` and `document`.
        num_terms: how many terms of each document.
        step: optimizer steps done.
    """
    texts = [pair["document"] for pair in pairs]
    token_ids = encoder.tokenisation.documents(texts, prompt="")
    (added,) = encoder.tokenisation.documents([""], prompt="")  # not in the text: the model's own tokens at its ends
    vectors = encoder.encode_document(texts, convert_to_csr=True)
    rows = []
    for example, (pair, ids, (dims, weights)) in enumerate(zip(pairs, token_ids, split_rows(vectors), strict=True)):
        in_text = np.isin(dims, np.setdiff1d(ids, added))
        strongest = np.argsort(-weights, kind="stable")[:num_terms]
        names = encoder.tokenizer.convert_ids_to_tokens(dims[strongest].tolist())
        values = zip(names, weights[strongest].tolist(), in_text[strongest].tolist(), strict=True)
        rows.append(
            DocumentTerms(
                step=step,
                example=example,
                query=textwrap.shorten(pair["query"], _LONGEST_TEXT, placeholder=" ..."),
                document=textwrap.shorten(pair["document"], _LONGEST_TEXT, placeholder=" ..."),
                active_dims=len(dims),
                expansion_share=float(weights[~in_text].sum() / weights.sum()) if len(dims) else 0.0,
                terms=[Term(*value) for value in values],
            )
        )
    return rows


def _draw(data: Any, num_documents: int, seed: int) -> list[dict[str, str]]:
    """The pairs whose documents are shown."""
    pairs = data.eval_pairs if len(data.eval_rows) else data.train_pairs
    chosen = np.random.default_rng(seed).choice(len(pairs), size=min(num_documents, len(pairs)), replace=False)
    return [pairs[int(row)] for row in chosen]
