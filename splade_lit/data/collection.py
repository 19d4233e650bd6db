"""Test collections: documents, queries and judgements of a split, from folders whose files have the field's names.

| what | names, each also with `.gz` |
|---|---|
| documents | `corpus.jsonl` (BEIR), `collection.tsv` (MS MARCO: id, tab, text) |
| queries | `queries.SPLIT.tsv` (MS MARCO), `topics.SPLIT.txt` or `.xml` (TREC), else `queries.jsonl`, `topics.txt` |
| judgements | `qrels/SPLIT.tsv` (BEIR), `qrels.SPLIT.tsv` (MS MARCO), `qrels.SPLIT.txt` (TREC) |
| triples | `triples.SPLIT.tsv` (texts), `qidpidtriples.SPLIT.tsv` (ids) |
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from splade_lit.core.errors import UserError
from splade_lit.core.files import Folder
from splade_lit.core.tables import BATCH_ROWS, read_rows, read_unique
from splade_lit.core.text import read_qrels
from splade_lit.data.hub import TextSource, local_path, open_texts
from splade_lit.data.topics import is_topics, read_topics

Qrels = dict[str, dict[str, int]]
Lookup = Callable[[Sequence[str]], Mapping[str, str]]
"""Ids to the texts of those that are there."""

CORPUS = ("corpus.jsonl", "collection.tsv")
TRIPLE = ("query", "answer", "negative_1")
_QUERIES = ("queries.jsonl", "queries.tsv", "topics.txt", "topics.xml", "topics.tsv")
_OF_SPLIT = ("queries.{}.tsv", "queries.{}.jsonl", "topics.{}.txt", "topics.{}.xml", "topics.{}.tsv")
_QRELS = ("qrels/{}.tsv", "qrels.{}.tsv", "qrels.{}.txt", "qrels/{}.txt")
_ID_TEXT = ("_id", "text")


@dataclass(frozen=True)
class Collection:
    """What there is of a test collection; nothing is read before it is asked for.

    Attributes:
        source: as it was named.
        state: of its files; equal as long as they are.
        corpus: id and text of each document, titles before texts; `num_documents` where that is known without reading.
        queries: id and text of each query.
        qrels: the judgements of the split; None if there are none.
        triples: ids of query, relevant document and other document; None if there are none.
        scored: ids of query and document with a score; None if there are none.
        lookup: texts of documents by id, without all of them in memory; made when it is needed.
    """

    source: str
    state: str
    corpus: Callable[[], Iterator[tuple[str, str]]]
    queries: Callable[[], Iterator[tuple[str, str]]]
    qrels: Callable[[], Qrels] | None
    lookup: Callable[[], Lookup]
    triples: Callable[[], Iterator[tuple[str, str, str]]] | None = None
    scored: Callable[[], Iterator[tuple[str, str, float]]] | None = None
    num_documents: int | None = None


def split_source(source: str) -> tuple[Path, str | None]:
    """Folder and split of `FOLDER` or `FOLDER:SPLIT`.

    >>> split_source("beir/scifact:train") == (Path("beir/scifact"), "train") or Path("beir/scifact:train").exists()
    True
    """
    path = local_path(source)
    folder, colon, split = source.rpartition(":")
    if path.exists() or not (colon and folder and split) or "/" in split:
        return path, None
    return local_path(folder), split


def is_collection(folder: Path) -> bool:
    """Whether a folder holds documents and queries under the field's names; judgements may be missing."""
    return corpus_file(folder) is not None and any(
        path.name.startswith(("queries.", "topics.")) for path in folder.iterdir()
    )


def corpus_file(folder: Path) -> Path | None:
    """The file of documents of a folder; None if there is none."""
    return _file(folder, CORPUS) if folder.is_dir() else None


def titled_file(folder: Path) -> Path | None:
    """The `corpus.jsonl` of a folder that is a collection, whose documents may have titles; None if it is none."""
    path = corpus_file(folder)
    return path if path is not None and path.name.startswith(CORPUS[0]) and is_collection(folder) else None


def splits_of(folder: Path) -> list[str]:
    """The splits that a folder has judgements of."""
    found: dict[str, None] = {}
    for path in sorted([*folder.glob("qrels.*"), *folder.glob("qrels/*")]):
        name = path.name.removesuffix(".gz")
        if name.endswith((".tsv", ".txt")):
            found[name[:-4].removeprefix("qrels.")] = None
    return [split for split in found if split not in ("", "qrels")]  # qrels.tsv names no split


def check_split(folder: Path, split: str) -> None:
    """Raise a UserError that names the splits with judgements if a split has none."""
    if split not in (splits := splits_of(folder)):
        known = f"there are {', '.join(f'{folder}:{one}' for one in splits)}" if splits else "there are none at all"
        raise UserError(f"{folder}: no judgements of the split {split} in qrels/{split}.tsv or the like; {known}.")


def open_folder(folder: Path, split: str, cache_dir: Folder = None) -> Collection:
    """The collection in a folder (see the table above), with the judgements and triples of a split as far as there are.

    A UserError says that a folder has no documents or no queries, or that the split's triples have several files.
    """
    corpus, source = corpus_file(folder), f"{folder}:{split}"
    names_of_queries = (*(name.format(split) for name in _OF_SPLIT), *_QUERIES)
    queries = _file(folder, names_of_queries)
    qrels = _file(folder, [name.format(split) for name in _QRELS])
    if corpus is None or queries is None:
        raise UserError(f"{folder}: no {_listed(CORPUS if corpus is None else names_of_queries)} there (nor with .gz).")
    triples = _one_of(folder, f"qidpidtriples.{split}")
    documents = id_texts(corpus, cache_dir)
    files = [path for path in (corpus, queries, qrels, triples) if path]
    return Collection(
        source,
        repr([(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]),
        corpus=lambda: _joined(read_unique(documents.files, _text_columns(documents), names=_names(documents))),
        queries=lambda: read_queries(queries),
        qrels=(lambda: read_qrels(qrels)) if qrels else None,
        lookup=lambda: stored_lookup(documents.read(_text_columns(documents), id_column=True)),
        triples=(lambda: _id_triples(triples)) if triples else None,
    )


def text_triples(folder: Path, split: str) -> Path | None:
    """The file of triples of texts of a split; None if there is none, a UserError if there are several."""
    return _one_of(folder, f"triples.{split}")


def read_queries(path: Path) -> Iterator[tuple[str, str]]:
    """Id and text of each query of a file: BEIR's jsonl, TREC's topics, or lines of id, tab and text.

    A UserError says that the file is in none of these forms, or that an id is missing or doubled.
    """
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        return _joined(read_unique([path], _ID_TEXT))
    if is_topics(path):
        return read_topics(path)
    return _joined(read_unique([path], _ID_TEXT, names=_ID_TEXT))


def id_texts(path: Path, cache_dir: Folder = None) -> TextSource:
    """The documents of a file: jsonl with columns `_id`, `title` if there is one, and `text`, or tsv of id and text."""
    if path.name.removesuffix(".gz").endswith(".tsv"):
        return TextSource(str(path), (path,), _ID_TEXT, cache_dir, no_header=True)
    return open_texts(str(path), cache_dir=cache_dir)


def stored_lookup(documents: datasets.Dataset) -> Lookup:
    """Texts by id from a data set on disk, whose first column is ids; 16 bytes a document are kept in memory."""
    id_column, *text_columns = documents.column_names
    batches = (batch[id_column] for batch in documents.select_columns(id_column).iter(BATCH_ROWS))
    keys = np.fromiter((hash(id) for ids in batches for id in ids), np.int64, len(documents))
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]

    def lookup(ids: Sequence[str]) -> dict[str, str]:
        wanted = np.unique(np.fromiter(map(hash, ids), np.int64, len(ids)))
        places = np.searchsorted(ordered, wanted)
        inside = places < len(ordered)
        places, wanted = places[inside], wanted[inside]
        rows = np.sort(order[places[ordered[places] == wanted]])
        found = documents[rows.tolist()] if len(rows) else {name: [] for name in documents.column_names}
        texts = zip(*(found[name] for name in text_columns), strict=True)
        return {id: join_text(parts) for id, parts in zip(found[id_column], texts, strict=True)}

    return lookup


def join_text(parts: Iterable[str | None]) -> str:
    """Title and text as one, as BEIR does.

    >>> join_text(["Rivers", "They flow."]), join_text([None, "They flow."])
    ('Rivers They flow.', 'They flow.')
    """
    return " ".join(part for part in parts if part).strip()


def _joined(rows: Iterable[Sequence[str | None]]) -> Iterator[tuple[str, str]]:
    return ((str(id), join_text(parts)) for id, *parts in rows)


def _text_columns(source: TextSource) -> list[str]:
    return ["_id", *(["title"] if "title" in source.columns else []), "text"]


def _names(source: TextSource) -> tuple[str, ...] | None:
    return source.columns if source.no_header else None


def _id_triples(path: Path) -> Iterator[tuple[str, str, str]]:
    columns = ("query id", "positive id", "negative id")
    for _, ids in read_rows(path, columns, columns, names=columns):
        query, positive, negative = map(str, ids)
        yield query, positive, negative


def _file(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of these files that is there, gzipped or not."""
    paths = (path for name in names for path in (folder / name, folder / f"{name}.gz"))
    return next((path for path in paths if path.is_file()), None)


def _one_of(folder: Path, start: str) -> Path | None:
    """The one file `START.tsv`, or else `START.*.tsv`."""
    if exact := _file(folder, [f"{start}.tsv"]):
        return exact
    found = sorted([*folder.glob(f"{start}.*.tsv"), *folder.glob(f"{start}.*.tsv.gz")])
    if len(found) > 1:
        splits = ", ".join(path.name.removesuffix(".gz")[: -len(".tsv")].partition(".")[2] for path in found)
        raise UserError(f"{folder}: several files of triples; set data.split to one of {splits}.")
    return found[0] if found else None


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
