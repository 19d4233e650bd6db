"""A corpus to encode or search: documents with ids, from a file, a data set or a retrieval task."""

import glob
import textwrap
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import datasets
import numpy as np

from splade_lit.core.errors import UserError, first_line
from splade_lit.core.files import Folder
from splade_lit.core.tables import BATCH_ROWS
from splade_lit.core.text import Mender
from splade_lit.data.collection import corpus_file, id_texts, is_collection
from splade_lit.data.hub import local_path, open_texts, plain_errors
from splade_lit.data.irds import is_irds, open_irds
from splade_lit.data.tasks import is_task, load_task

_IDS = ("_id", "id")


@dataclass(frozen=True)
class Corpus:
    """Documents that are read as they are asked for, from the start at each call; no two have one id.

    `rows` gives id and text of each, `num_rows` counts those without text too; None if that is known at the end only.
    `untitled` gives the texts of the same rows without the titles that `rows` puts before them; None if there are none.
    """

    num_rows: int | None
    rows: Callable[[], Iterator[tuple[str, str]]]
    source: str
    untitled: Callable[[], Iterator[str]] | None = None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """`(id, text)` of each document with text."""
        return ((id, text) for id, text in self.rows() if text)


def open_corpus(
    source: str,
    text_column: str = "text",
    cache_dir: Folder = None,
    titles: bool = True,
    limit: int | None = None,
) -> Corpus:
    """A corpus of any size, whose ids are in a column `_id` or `id`, or else row numbers, from 0.

    The source is a file (jsonl, csv, tsv, txt with a document a line, each gzipped or not, or parquet), a Hub id or a
    folder in the layout of a Hub data set, a retrieval task of one corpus (`docstrings`, `nq`, a folder in BEIR's or MS
    MARCO's files), or `irds:` and an id of ir_datasets. With `titles`, a column `title` is put before the text, as BEIR
    does; a retrieval task has it there anyway. With `limit`, a file is read until so many documents with text are
    found. A UserError says that there is no such source or column, or that an id is missing or doubled.
    """
    if is_irds(source):
        collection = open_irds(source)
        num_rows = collection.num_documents or sum(1 for _ in collection.corpus())
        return Corpus(num_rows, collection.corpus, source)
    folder = local_path(source)
    path = corpus_file(folder)
    if path is not None and (path.name.startswith("collection.") or is_collection(folder)):
        opened, text_column = id_texts(path, cache_dir), "text"
    elif is_task(source):
        corpus = load_task(source, cache_dir=cache_dir)[0].corpus
        return Corpus(len(corpus), lambda: iter(corpus.items()), source)
    else:
        opened = open_texts(source, cache_dir=cache_dir)
    columns, with_ids = _columns(opened.columns, text_column, titles)
    if limit is not None:
        mend = Mender()
        rows = _documents(opened.rows(columns, with_ids, mend), with_ids)
        first = list(islice(((id, text) for id, text in rows if text), limit))
        if len(dict(first)) == len(first):  # else `read` says which lines share an id
            mend.report(source)
            return Corpus(len(first), lambda: iter(first), source)
    dataset = opened.read(columns, id_column=with_ids)
    titled = "title" in columns and text_column != "title"
    untitled = (lambda: ((values[-1] or "").strip() for values in _stored_rows(dataset))) if titled else None
    return Corpus(len(dataset), lambda: _documents(_stored_rows(dataset), with_ids), source, untitled)


def open_corpora(sources: Sequence[str], text_column: str = "text", stream: bool = False) -> Corpus:
    """A corpus in one source, as `open_corpus`, or in several files, given by name or pattern (`docs-*.jsonl.gz`).

    Several files are read one after another as their documents are asked for, and no copy of them is made; ids are
    unique in all of them together, which is known after the last. With `stream` so is one file, and so is a data set by
    folder or Hub id, of which nothing is kept on disk. A UserError is that of `open_corpus`.
    """
    files = [path for source in sources for path in _matching(source)]
    if len(files) == 1 and (not stream or _is_collection(files[0])):
        return open_corpus(files[0], text_column)
    if len(files) == 1 and not local_path(files[0]).exists():
        return _streamed(files[0], text_column)
    opened = [open_texts(path) for path in files]
    paths = tuple(path for one in opened for path in one.files)
    together = replace(opened[0], source=" ".join(sources), files=paths)
    columns, with_ids = _columns(together.columns, text_column, titles=True)

    def rows() -> Iterator[tuple[str, str]]:
        mend = Mender()
        yield from _documents(together.rows(columns, with_ids, mend), with_ids)
        mend.report(together.source)

    return Corpus(None, rows, together.source)


def _is_collection(source: str) -> bool:
    """Whether a source is a task or a test collection, which are read in ways of their own."""
    return is_irds(source) or is_task(source) or is_collection(local_path(source))


def _streamed(source: str, text_column: str) -> Corpus:
    """A data set of the Hub that `datasets` streams."""
    with _told(source), plain_errors(source):
        dataset = datasets.load_dataset(source, split="train", streaming=True)
        names = dataset.column_names or list(next(iter(dataset)))
    columns, with_ids = _columns(names, text_column, titles=True)
    if text_column not in names:
        raise UserError(f"{source}: no column {text_column}; its columns are {', '.join(names)}.")

    def read() -> Iterator[dict[str, Any]]:
        with _told(source):
            yield from dataset

    def rows() -> Iterator[tuple[str, str]]:
        hashes, mend = array("q"), Mender()
        values = ([_plain_text(row[name], source, name, mend) for name in columns] for row in read())
        for id, text in _documents(values, with_ids):
            hashes.append(hash(id))
            yield id, text
        mend.report(source)
        found, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
        if with_ids and len(found) < len(hashes):  # ids, or their hashes alone: read once more to know
            several, seen = set(found[counts > 1].tolist()), set[str]()
            for row in read():
                id = str(row[columns[0]])
                if hash(id) in several and id in seen:
                    raise UserError(f"{source}: two documents have the id {id!r}; make ids unique.")
                seen.update([id] if hash(id) in several else [])

    return Corpus(None, rows, source)


@contextmanager
def _told(source: str) -> Iterator[None]:
    """Turn whatever the readers of `datasets` raise, each in its own way, into a UserError of one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{source}: cannot be read: {first_line(error)}.") from error


def _plain_text(value: Any, source: str, name: str, mend: Mender) -> str | None:
    if isinstance(value, str):
        return mend(value)
    if value is None and name not in _IDS:
        return None
    if isinstance(value, int) and name in _IDS:
        return str(value)
    raise UserError(f"{source}: the column {name} holds {textwrap.shorten(repr(value), 60)}, which is no text.")


def _matching(source: str) -> list[str]:
    """The files of a pattern; what is no pattern, or is there by this name, is itself."""
    path = local_path(source)
    if not glob.has_magic(source) or path.exists():
        return [source]
    if not (files := sorted(glob.glob(str(path), recursive=True))):
        raise UserError(f"{source}: there is no such file.")
    return files


def _columns(names: Sequence[str], text_column: str, titles: bool) -> tuple[list[str], bool]:
    """The columns to read, an id first if there is one, the title before the text; and whether there is an id."""
    ids = [name for name in _IDS if name in names and name != text_column][:1]
    title = ["title"] if titles and "title" in names and text_column != "title" else []
    return [*ids, *title, text_column], bool(ids)


def load_corpus(
    source: str, text_column: str = "text", cache_dir: Folder = None, limit: int | None = None
) -> dict[str, str]:
    """Id to text of the first documents with text, as `open_corpus`; a UserError if there are none."""
    corpus = dict(islice(open_corpus(source, text_column, cache_dir, limit=limit), limit))
    if not corpus:
        raise UserError(f"{source}: no document has text in the column {text_column}.")
    return corpus


def _stored_rows(dataset: datasets.Dataset) -> Iterator[Sequence[str | None]]:
    return chain.from_iterable(zip(*batch.values(), strict=True) for batch in dataset.iter(BATCH_ROWS))


def _documents(rows: Iterable[Sequence[str | None]], with_ids: bool) -> Iterator[tuple[str, str]]:
    for number, values in enumerate(rows):
        id, *parts = values if with_ids else (str(number), *values)
        yield str(id), " ".join(part for part in parts if part).strip()
