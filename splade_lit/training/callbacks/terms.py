"""The strongest terms of a few documents while the model trains, those in the text and those added to it."""

import textwrap
from typing import Any

import lightning as L
import numpy as np

from splade_lit.core.ranges import LARGEST_SEED, check_range
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.rows import split_rows
from splade_lit.training.callbacks.hooks import RowsCallback, encoder_of, evaluating
from splade_lit.training.callbacks.loggers import log_table

TABLE = "terms/documents"
COLUMNS = ("step", "example", "query", "document", "active_dims", "expansion_share", "terms_in_text", "expansions")
_LONGEST_TEXT = 300  # characters that are shown


class TermTable(RowsCallback):
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

    file = "terms.jsonl"

    def __init__(self, every_n_steps: int = 500, num_documents: int = 5, num_terms: int = 20, seed: int = 0) -> None:
        check_range("TermTable", 1, every_n_steps=every_n_steps, num_documents=num_documents, num_terms=num_terms)
        check_range("TermTable", 0, LARGEST_SEED, seed=seed)
        super().__init__(every_n_steps)
        self.num_documents = num_documents
        self.num_terms = num_terms
        self.seed = seed
        self._pairs: list[dict[str, str]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the model as it starts, unless a run is resumed."""
        super().on_train_start(trainer, pl_module)
        if not self.rows:
            self.look(trainer, pl_module)

    def look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the documents and log."""
        if not trainer.is_global_zero:
            return
        if not self._pairs:
            data = trainer.datamodule  # type: ignore[attr-defined]
            pairs = data.eval_pairs if len(data.eval_rows) else data.train_pairs
            size = min(self.num_documents, len(pairs))
            chosen = np.random.default_rng(self.seed).choice(len(pairs), size=size, replace=False)
            self._pairs = [pairs[int(row)] for row in chosen]
        with evaluating(trainer):
            rows = document_terms(encoder_of(pl_module), self._pairs, self.num_terms)
        self.add_rows(trainer, [{"step": trainer.global_step, **row} for row in rows])
        log_table(trainer, TABLE, COLUMNS, [_cells(row) for row in self.rows], num_new=len(rows))


def document_terms(
    encoder: AsymmetricSparseEncoder, pairs: list[dict[str, str]], num_terms: int
) -> list[dict[str, Any]]:
    """The strongest terms of the documents of pairs, the strongest first.

    `active_dims` is the number of all terms of a document, `expansion_share` the share of their weights that terms have
    which its text does not hold.
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
        terms = zip(names, weights[strongest].tolist(), in_text[strongest].tolist(), strict=True)
        row = {
            "example": example,
            "query": textwrap.shorten(pair["query"], _LONGEST_TEXT, placeholder=" ..."),
            "document": textwrap.shorten(pair["document"], _LONGEST_TEXT, placeholder=" ..."),
            "active_dims": len(dims),
            "expansion_share": float(weights[~in_text].sum() / weights.sum()) if len(dims) else 0.0,
            "terms": [{"term": term, "weight": weight, "in_text": inside} for term, weight, inside in terms],
        }
        rows.append(row)
    return rows


def _cells(row: dict[str, Any]) -> list[Any]:
    """The row of a table with `COLUMNS`."""
    in_text, expansions = (
        "  ".join(f"{term['term']} {term['weight']:.2f}" for term in row["terms"] if term["in_text"] is kind)
        for kind in (True, False)
    )
    return [*(row[name] for name in COLUMNS[:5]), round(row["expansion_share"], 4), in_text, expansions]
