"""Training pairs: a query, documents that answer it, and hard negatives if there are any."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
import xxhash

from splade_lit.core.errors import UserError
from splade_lit.core.files import Folder
from splade_lit.core.tables import BATCH_ROWS
from splade_lit.data.answers import NO_TEXT
from splade_lit.data.collection_pairs import QRELS, Choice, has_judgements, open_pairs
from splade_lit.data.docstrings import DOCSTRINGS, document_text, load_docstrings

NATURAL_QUESTIONS = "sentence-transformers/natural-questions"
DEFAULT_REVISIONS = {NATURAL_QUESTIONS: "f9e894e1081e206e577b4eaa9ee6de2b06ae6f17"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs:
    """Pairs of text, read from disk as they are asked for.

    The columns are `query`, `document`, `positive_2` and so on for further answers, `negative_1`, `negative_2` and so
    on. Query and document are there in every row, the others may be empty. `config` is what was asked for, `commit`
    that of a Hub id, if it is known. `scores`, fp32 `[pairs, documents]`, are what a teacher gives for the query with
    each document of its row, in the order of the columns, NaN where it has not scored; None without a teacher.
    """

    dataset: datasets.Dataset
    source: str
    config: str | None = None
    commit: str | None = None
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, str]:
        """One pair: column to text, empty where there is none."""
        return {column: text or "" for column, text in self.dataset[index].items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """`query`, `document`, further positives and the negatives, in this order."""
        return tuple(self.dataset.column_names)

    @property
    def num_positives(self) -> int:
        """How many columns hold documents that answer the query."""
        return sum(name == "document" or name.startswith("positive_") for name in self.columns)

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """`document` and the further positives."""
        return self.columns[1 : 1 + self.num_positives]

    def select(self, rows: Sequence[int] | np.ndarray) -> "Pairs":
        """These rows in this order; no text is copied."""
        scores = None if self.scores is None else self.scores[np.asarray(rows, dtype=np.int64)]
        return replace(self, dataset=self.dataset.select(rows), scores=scores)

    def batches(self, column: str, rows: int = BATCH_ROWS) -> Iterator[list[str]]:
        """The texts of a column, `rows` at a time; empty where there is none but white space."""
        for batch in self.dataset.select_columns(column).iter(rows):
            yield ["" if text is None or text.isspace() else text for text in batch[column]]

    def hashes(self, column: str, key: Callable[[str], str] = str) -> np.ndarray:
        """uint64 `[pairs]`: the hash of the key of each text of a column."""
        return hashes(key(text) for batch in self.batches(column) for text in batch)

    def fingerprints(self) -> np.ndarray:
        """uint64 `[pairs, columns]`: the 64-bit hash of each text, equal for equal texts; `NO_TEXT` if it is empty."""
        columns = [self.hashes(column) for column in self.columns]
        (empty,) = hashes([""])
        return np.stack([np.where(column == empty, np.uint64(NO_TEXT), column) for column in columns], axis=1)


def hashes(texts: Iterable[str]) -> np.ndarray:
    """uint64, one a text; equal for equal texts."""
    return np.fromiter((xxhash.xxh3_64_intdigest(text.encode()) for text in texts), np.uint64)


def load_pairs(
    source: str,
    query_column: str = "query",
    document_column: str = "answer",
    negative_columns: Sequence[str] = (),
    positive_columns: Sequence[str] = (),
    score_columns: Sequence[str] = (),
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    max_pairs: int | None = None,
    cache_dir: Folder = None,
    min_grade: int = 1,
) -> Pairs:
    """Pairs of a data set; rows without a query or a document are left out, and a line of the log says how many.

    The arguments are the settings of the same names of `PairsDataModule`, which says what they mean. A UserError is
    that of `open_pairs`, `TextSource.read` or `TextSource.numbers`, or says that no pair is left.
    """
    commit = scores = None
    if source == DOCSTRINGS:
        train = load_docstrings(cache_dir).train
        texts = {"query": [d.first_sentence for d in train], "document": [document_text(d) for d in train]}
        dataset = datasets.Dataset.from_dict(texts)
    else:
        columns = (query_column, document_column, *positive_columns, *negative_columns)
        if len(set(columns)) < len(columns):
            raise UserError(f"{source}: the columns {', '.join(columns)} must be different ones.")
        choice = Choice(min_grade, max(1, len(negative_columns)), max_pairs)
        opened = open_pairs(source, config, split, revision or DEFAULT_REVISIONS.get(source), cache_dir, choice)
        commit = opened.commit
        dataset = _renamed(opened.read(columns), len(positive_columns))
        scores = opened.numbers(score_columns, len(columns) - 1) if score_columns else None
    pairs = Pairs(dataset, source, config, commit, scores)
    if max_pairs is not None and max_pairs < len(pairs):
        logger.info("%s: max_pairs leaves out %d of %d rows.", source, len(pairs) - max_pairs, len(pairs))
        pairs = pairs.select(range(max_pairs))
    return _without_empty_texts(pairs)


def pairs_files(source: str, config: str | None, split: str, choice: Choice) -> list[Path]:
    """The files of this machine that pairs are read from; a UserError is that of `open_pairs`."""
    return [] if source == DOCSTRINGS else list(open_pairs(source, config, split, choice=choice).files)


def load_answers(
    source: str,
    query_column: str = "query",
    document_column: str = "answer",
    positive_columns: Sequence[str] = (),
    config: str | None = None,
    split: str = "train",
    max_pairs: int | None = None,
    min_grade: int = 1,
) -> Pairs:
    """All that the source of some pairs says of answers, whichever rows are trained on; texts may be empty.

    Of a test collection these are its judgements of a grade above 0. The arguments are those of `load_pairs`, whose
    `max_pairs` counts only where all rows are too many to be looked up: triples by id, or documents that are scored.
    """
    if source == DOCSTRINGS:
        return load_pairs(source)
    judged = has_judgements(source, split)
    choice = Choice(min(min_grade, 1), limit=max_pairs)
    opened = open_pairs(source, QRELS if judged else config, split, DEFAULT_REVISIONS.get(source), choice=choice)
    dataset = opened.read((query_column, document_column, *positive_columns))
    return Pairs(_renamed(dataset, len(positive_columns)), source, config, opened.commit)


def _renamed(dataset: datasets.Dataset, num_further: int) -> datasets.Dataset:
    """The columns under the names that `Pairs` has for them; so many after the second are further answers."""
    columns = dataset.column_names
    negatives = range(1, len(columns) - num_further - 1)
    further = [f"positive_{number}" for number in range(2, num_further + 2)]
    names = ["query", "document", *further, *(f"negative_{number}" for number in negatives)]
    return dataset.rename_columns(dict(zip(columns, names, strict=True)))


def split_rows(num_pairs: int, num_eval_pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and rows held out, as `Dataset.train_test_split(num_eval_pairs, seed=seed)` draws them.

    A UserError says that no row is left for training.
    """
    if num_eval_pairs == 0:
        return np.arange(num_pairs), np.arange(0)
    if num_eval_pairs >= num_pairs:
        raise UserError(f"num_eval_pairs is {num_eval_pairs}, but there are only {num_pairs} pairs; hold out fewer.")
    rows = datasets.Dataset.from_dict({"row": np.arange(num_pairs)}).with_format("numpy")
    parts = rows.train_test_split(test_size=num_eval_pairs, seed=seed)
    return parts["train"]["row"][:], parts["test"]["row"][:]


def _without_empty_texts(pairs: Pairs) -> Pairs:
    has_text = [np.zeros(0, dtype=bool)]
    for table in pairs.dataset.select_columns(["query", "document"]).with_format("arrow").iter(BATCH_ROWS):
        lengths = [pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0) for column in table.columns]
        has_text.append(np.all([column.to_numpy() > 0 for column in lengths], axis=0))
    rows = np.flatnonzero(np.concatenate(has_text))
    if len(rows) == 0:
        raise UserError(f"{pairs.source}: no pair with both a query and a document, of {len(pairs)} rows.")
    empty = len(pairs) - len(rows)
    if empty == 0:
        return pairs
    logger.warning("%s: %d of %d pairs have an empty text and are skipped.", pairs.source, empty, len(pairs))
    return pairs.select(rows)
