"""A corpus to encode or search: documents with ids, from a file, a data set or a retrieval task."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import datasets

from splade_lit.core.errors import UserError
from splade_lit.data.hub import local_path, open_texts
from splade_lit.data.tasks import beir_file, is_beir, is_task, load_task

_ROWS = 1000


@dataclass(frozen=True)
class Corpus:
    """Documents that are read as they are asked for.

    Attributes:
        num_rows: how many there are, those without text among them.
        rows: gives id and text of each, from the start at each call; no two have one id.
        source: where they come from.
    """

    num_rows: int
    rows: Callable[[], Iterator[tuple[str, str]]]
    source: str

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """`(id, text)` of each document with text."""
        return ((id, text) for id, text in self.rows() if text)


def open_corpus(
    source: str, text_column: str = "text", cache_dir: str | Path | None = None, titles: bool = True
) -> Corpus:
    """A corpus of any size, whose ids are in a column `_id` or `id`, or else row numbers, from 0.

    Args:
        source: a file (jsonl, csv, tsv, txt with a document a line, each gzipped or not, or parquet), a Hub id or a
            folder in the layout of a Hub data set, or a retrieval task of one corpus (`docstrings`, `nq`, a BEIR
            folder).
        text_column: name of the column of texts.
        cache_dir: folder of the cache of texts.
        titles: put the column `title` before the text, as BEIR does; a retrieval task has it there anyway.

    Raises:
        UserError: there is no such source, it has no such column, or an id is missing or doubled.
    """
    folder, file = local_path(source), source
    if is_beir(folder):
        file, text_column = str(beir_file(folder, "corpus.jsonl")), "text"
    elif is_task(source):
        corpus = load_task(source, cache_dir=cache_dir)[0].corpus
        return Corpus(len(corpus), lambda: iter(corpus.items()), source)
    opened = open_texts(file, cache_dir=cache_dir)
    ids = [name for name in ("_id", "id") if name in opened.columns and name != text_column][:1]
    title = ["title"] if titles and "title" in opened.columns and text_column != "title" else []
    dataset = opened.read([*ids, *title, text_column], id_column=bool(ids))
    return Corpus(len(dataset), lambda: _rows(dataset, bool(ids)), source)


def load_corpus(
    source: str, text_column: str = "text", cache_dir: str | Path | None = None, limit: int | None = None
) -> dict[str, str]:
    """Document id to text of a corpus that fits into memory; documents without text are left out.

    Raises:
        UserError: as `open_corpus`, or no document has text.
    """
    corpus = dict(islice(open_corpus(source, text_column, cache_dir), limit))
    if not corpus:
        raise UserError(f"{source}: no document has text in the column {text_column}.")
    return corpus


def _rows(dataset: datasets.Dataset, with_ids: bool) -> Iterator[tuple[str, str]]:
    numbers = map(str, count())
    for batch in dataset.iter(_ROWS):
        columns = list(batch.values())
        ids = columns.pop(0) if with_ids else islice(numbers, len(columns[0]))
        for id, *parts in zip(ids, *columns, strict=True):
            yield id, " ".join(part for part in parts if part).strip()
