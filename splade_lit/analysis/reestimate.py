"""The query table of a saved model fitted to another corpus: what moves, and what that does to retrieval."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from splade_lit.core.errors import UserError
from splade_lit.core.progress import WorkProgress
from splade_lit.core.tokenisation import tokenize_queries
from splade_lit.data.corpus import Corpus
from splade_lit.encoder.idf import idf_of, moved_weights
from splade_lit.encoder.layout import SavedLayout, find_saved
from splade_lit.encoder.query_side import QuerySide
from splade_lit.encoder.table import write_table

if TYPE_CHECKING:
    from splade_lit.data.tasks import RetrievalTask
    from splade_lit.encoder.model import AsymmetricSparseEncoder
    from splade_lit.evaluation.paired_tests import Difference

_CHUNK = 1_000
# Factors that the report counts weights between.
FACTORS = (0.5, 0.8, 1.25, 2.0)


@dataclass(frozen=True)
class Frequencies:
    """Documents of a corpus that hold each token, int64 `[vocab]`, and how many documents there are."""

    document_frequencies: np.ndarray
    num_documents: int

    @property
    def idf(self) -> np.ndarray:
        """IDF weights of the corpus, float32 `[vocab]`."""
        return idf_of(self.document_frequencies, self.num_documents)


@dataclass(frozen=True)
class MovedToken:
    """The query weight of a token before and after, and the documents of the corpus that hold it."""

    token: str
    before: float
    after: float
    documents: int


@dataclass(frozen=True)
class MovedTable:
    """A query table fitted to a corpus.

    Attributes:
        mix: how far it has moved, from 0 to 1.
        before: query weights as learned, float32 `[vocab]`.
        after: fitted to the corpus.
        movable: bool `[vocab]`, tokens that the corpus holds and the model weighs; the others keep their weight.
        frequencies: of the corpus.
    """

    mix: float
    before: np.ndarray
    after: np.ndarray
    movable: np.ndarray
    frequencies: Frequencies

    @property
    def num_seen(self) -> int:
        """Tokens that the corpus holds."""
        return int((self.frequencies.document_frequencies > 0).sum())

    @property
    def factor_counts(self) -> list[int]:
        """Of the weights that could move, how many are below, between and above `FACTORS` times what they were."""
        factors = self.after[self.movable] / self.before[self.movable]
        return np.bincount(np.searchsorted(FACTORS, factors), minlength=len(FACTORS) + 1).tolist()

    def largest(self, side: QuerySide, number: int) -> tuple[list[MovedToken], list[MovedToken]]:
        """The weights that have risen most and those that have fallen most, the largest move first."""
        difference = self.after.astype(np.float64) - self.before
        order = np.argsort(-difference, kind="stable")
        rises = [dim for dim in order[:number].tolist() if difference[dim] > 0]
        falls = [dim for dim in order[::-1][:number].tolist() if difference[dim] < 0]
        return self._tokens(side, rises), self._tokens(side, falls)

    def _tokens(self, side: QuerySide, dims: Sequence[int]) -> list[MovedToken]:
        columns = (self.before, self.after, self.frequencies.document_frequencies)
        figures = [[column[dim].item() for column in columns] for dim in dims]
        return [MovedToken(token, *row) for token, row in zip(side.tokens(dims), figures, strict=True)]


def corpus_frequencies(side: QuerySide, corpus: Corpus) -> Frequencies:
    """Count the documents that hold each token, cut as the model reads them, special tokens left out.

    Raises:
        UserError: no document has text.
    """
    tokenisation = side.tokenisation
    added = tokenisation.tokenizer.backend_tokenizer.num_special_tokens_to_add(False)
    most = max(tokenisation.max_document_tokens - added, 1)
    counts, num_documents = np.zeros(len(side.weights), np.int64), 0
    texts = (text for _, text in corpus)
    with WorkProgress("counting tokens", "documents", corpus.num_rows) as progress:
        while chunk := list(islice(texts, _CHUNK)):
            ids = np.concatenate(tokenize_queries(tokenisation.tokenizer, chunk, most))
            counts += np.bincount(ids, minlength=len(counts))
            num_documents += len(chunk)
            progress.advance(len(chunk))
    if not num_documents:
        raise UserError(f"{corpus.source}: no document has text.")
    return Frequencies(counts, num_documents)


def move_table(side: QuerySide, corpus: Frequencies, mix: float, trained_on: Frequencies | None = None) -> MovedTable:
    """Fit the query table of a model to a corpus; see `moved_weights`.

    `trained_on` counts the documents that the model was trained on, where they are known.
    """
    reference = None if trained_on is None else trained_on.idf
    frequencies = (corpus.document_frequencies, corpus.num_documents)
    after, movable = moved_weights(side.weights, *frequencies, mix, reference)
    return MovedTable(mix, side.weights, after, movable, corpus)


@dataclass(frozen=True)
class TaskEffect:
    """What tables do to a task: nDCG@10 by name of the table, and the difference of each from the learned one."""

    task: str
    ndcg: Mapping[str, float]
    differences: Mapping[str, "Difference"]


LEARNED = "learned"


def effects(
    encoder: "AsymmetricSparseEncoder", tasks: Sequence["RetrievalTask"], tables: Mapping[str, np.ndarray]
) -> Iterator[TaskEffect]:
    """Encode the documents of each task once, and search them with the learned table and with each of these.

    Raises:
        UserError: no query of a task has a relevant document.
    """
    import torch

    from splade_lit.evaluation.paired_tests import differences
    from splade_lit.evaluation.per_query import query_figures
    from splade_lit.evaluation.results import evaluate_vectors
    from splade_lit.evaluation.task_evaluation import TokenisedTask

    weights = encoder.idf_weights
    all_tables = {LEARNED: weights.detach().cpu().numpy().copy(), **tables}
    for task in tasks:
        tokenised = TokenisedTask.of(task, encoder)
        with WorkProgress(f"encoding {task.name}", "documents", len(tokenised.documents)) as progress:
            documents = encoder.encode_document_tokens(tokenised.documents, on_batch=progress.advance)
        figures = {}
        for name, table in all_tables.items():
            with torch.no_grad():
                weights.copy_(torch.from_numpy(table))
            queries = encoder.encode_query_tokens(tokenised.queries)
            result = evaluate_vectors(tokenised.task, tokenised.query_ids, queries, list(task.corpus), documents)
            figures[name] = query_figures(task, result.rank_metrics)
        found = {
            name: differences({name: [figures[name]], LEARNED: [figures[LEARNED]]}, frozenset([task.name]), "ndcg@10")
            for name in tables
        }
        ndcg = {name: one.means["ndcg@10"] for name, one in figures.items()}
        yield TaskEffect(task.name, ndcg, {name: one for name, (one,) in found.items()})
    with torch.no_grad():
        weights.copy_(torch.from_numpy(all_tables[LEARNED]))


def replace_table(source: str, weights: np.ndarray, side: QuerySide) -> Path:
    """Write the weights in place of those of a model in a folder; no other file changes. Returns the file.

    Raises:
        UserError: it is no folder, or the file cannot be written.
    """
    check_replaceable(source)
    return write_table(find_saved(source), weights, side.tokens(range(len(weights))))


def check_free(output: Path, source: str) -> None:
    """Raise a UserError if a folder to write holds something, or is in that of the model to copy."""
    if Path(source).is_dir() and output.resolve().is_relative_to(Path(source).resolve()):
        raise UserError(f"{output} is in the folder of the model that is copied; choose one outside of it.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is in use; give a new or an empty folder.")


def check_replaceable(source: str) -> None:
    """Raise a UserError if a model's table cannot be replaced where it is."""
    if not Path(source).is_dir():
        raise UserError(f"{source} is no folder of yours to change; give --output NEW_FOLDER.")


def copy_with_table(
    source: str, output: Path, weights: np.ndarray, side: QuerySide, revision: str | None = None
) -> None:
    """Write a copy of a model that has these weights and is the same otherwise, whole or not at all.

    Raises:
        UserError: the folder is in use, or cannot be written.
    """
    layout = find_saved(source, revision=revision)
    folder = _folder_of(layout)
    check_free(output, source)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
            new = Path(scratch, "new")
            shutil.copytree(folder, new)
            copied = {
                name: new / path.relative_to(folder)
                for name in ("document_folder", "query_folder", "idf_json")
                if (path := getattr(layout, name)) is not None
            }
            write_table(replace(layout, **copied), weights, side.tokens(range(len(weights))))
            if output.exists():
                output.rmdir()
            new.rename(output)
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror}); free space or choose another folder."
        ) from error


def _folder_of(layout: SavedLayout) -> Path:
    """The folder of the whole model."""
    if layout.query_folder is None:
        return layout.document_folder
    parents = (layout.query_folder, *layout.query_folder.parents)
    return next(folder for folder in parents if (folder / "modules.json").is_file())
