"""A corpus to encode or search: documents with ids, from a file, a data set or a retrieval task."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets

from splade_lit.core.errors import UserError
from splade_lit.data.hub import local_path, plain_errors, read_dataset, require_text
from splade_lit.data.tasks import beir_documents, count_beir_documents, is_beir, is_task, load_task

_ID_COLUMNS = ("_id", "id")
_ROWS = 1000


@dataclass(frozen=True)
class Corpus:
    """Documents that are read as they are asked for.

    Attributes:
        num_rows: how many there are, those without text among them.
        rows: gives `(id, text)` of each anew at each call; an id is None where a row lacks it.
        source: where they come from.
        id_column: name of the column of ids, None if they are row numbers.
    """

    num_rows: int
    rows: Callable[[], Iterator[tuple[str | None, str]]]
    source: str
    id_column: str | None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """`(id, text)` of each document with text.

        Raises:
            UserError: a document has no id.
        """
        for id, text in self.rows():
            if id is None:
                raise UserError(f"{self.source}: a document has no {self.id_column}; give each its own.")
            if text:
                yield id, text


def open_corpus(
    source: str, text_column: str = "text", cache_dir: str | Path | None = None, titles: bool = True
) -> Corpus:
    """A corpus of any size.

    A `title` is put before the text, as BEIR does. Ids come from a column `_id` or `id`; without one they are row
    numbers, from 0.

    Args:
        source: a file (jsonl, csv, tsv, txt with a document a line, each gzipped or not, or parquet), a Hub id or a
            folder in the layout of a Hub data set, or a retrieval task of one corpus (`docstrings`, `nq`, a BEIR
            folder).
        text_column: name of the column of texts.
        cache_dir: folder of the docstrings' cache.
        titles: put the title before the text; a retrieval task has it there anyway.

    Raises:
        UserError: there is no such source, or it has no such column.
    """
    folder = local_path(source)
    if is_beir(folder):
        return Corpus(count_beir_documents(folder), lambda: beir_documents(folder), source, "_id")
    if is_task(source):
        corpus = load_task(source, cache_dir=cache_dir)[0].corpus
        return Corpus(len(corpus), lambda: iter(corpus.items()), source, "_id")
    dataset = read_dataset(source)
    require_text(dataset, (text_column,), source)
    id_column = next((name for name in _ID_COLUMNS if name in dataset.column_names), None)
    return Corpus(len(dataset), lambda: _rows(dataset, source, text_column, id_column, titles), source, id_column)


def load_corpus(source: str, text_column: str = "text", cache_dir: str | Path | None = None) -> dict[str, str]:
    """Document id to text of a corpus that fits into memory; documents without text are left out.

    Args:
        source: see `open_corpus`.
        text_column: name of the column of texts.
        cache_dir: folder of the docstrings' cache.

    Raises:
        UserError: as `open_corpus`; two documents share an id, one lacks it, or none has text.
    """
    opened = open_corpus(source, text_column, cache_dir)
    rows = list(opened.rows())
    if missing := sum(id is None for id, _ in rows):
        raise UserError(f"{source}: {missing} of {len(rows)} documents have no {opened.id_column}; give each its own.")
    corpus = {str(id): text for id, text in rows}
    if copies := len(rows) - len(corpus):
        raise UserError(
            f"{source}: {copies} of {len(rows)} documents have the {opened.id_column} of another; make them unique."
        )
    corpus = {id: text for id, text in corpus.items() if text}
    if not corpus:
        raise UserError(f"{source}: no document has text in the column {text_column}.")
    return corpus


def _rows(
    dataset: datasets.Dataset, source: str, text_column: str, id_column: str | None, with_titles: bool
) -> Iterator[tuple[str | None, str]]:
    for start in range(0, len(dataset), _ROWS):
        with plain_errors(source):  # a text may turn out not to be UTF-8
            rows = dataset[start : start + _ROWS]
        texts = rows[text_column]
        ids = rows[id_column] if id_column else range(start, start + len(texts))
        titles = rows["title"] if with_titles and "title" in rows else [""] * len(texts)
        for id, title, text in zip(ids, titles, texts, strict=True):
            yield None if id is None else str(id), f"{title or ''} {text or ''}".strip()
