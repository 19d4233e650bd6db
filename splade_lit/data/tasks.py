"""Retrieval tasks: NanoBEIR from the Hub or a folder, BEIR folders, docstrings; all become a `RetrievalTask`."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from splade_lit.core.errors import UserError
from splade_lit.core.files import Folder
from splade_lit.core.sources import NANOBEIR_ID
from splade_lit.core.tables import read_rows, read_unique
from splade_lit.core.text import check_ids, read_qrels
from splade_lit.data.docstrings import DOCSTRINGS, document_text, load_docstrings
from splade_lit.data.hub import TextSource, folder_splits, local_path, open_texts

_NANOBEIR = ["ClimateFEVER", "DBPedia", "FEVER", "FiQA2018", "HotpotQA", "MSMARCO", "NFCorpus", "NQ", "QuoraRetrieval"]
_NANOBEIR += ["SCIDOCS", "ArguAna", "SciFact", "Touche2020"]
NANOBEIR_SPLITS = {name.lower(): f"Nano{name}" for name in _NANOBEIR}
_JUDGED = ("query-id", "corpus-id")
_CORPUS, _QUERIES = "corpus.jsonl", "queries.jsonl"
_PARTS = ("corpus", "queries", "qrels")


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, a corpus, and which of its documents answer which query.

    Attributes:
        name: under which metrics are logged, `NanoNQ`.
        corpus: document id to text.
        queries: query id to text; each has a relevant document in `qrels`.
        qrels: query id to document id to grade; documents of grade 0 or less are judged and not relevant.
        graded: whether nDCG uses the grades as gains; otherwise every relevant document counts 1.
        group: tasks of one group are also averaged.
        leave_out_queries: leave the document with a query's own id out of its ranking unless it is relevant, as BEIR
            does: in ArguAna and Quora, queries are documents too. The evaluators of sentence-transformers keep it.
    """

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    graded: bool = False
    group: str | None = None
    leave_out_queries: bool = False

    @property
    def own_ids(self) -> frozenset[str]:
        """Queries that have the id of a document which does not answer them."""
        return frozenset(id for id in self.queries if id in self.corpus and self.qrels.get(id, {}).get(id, 0) <= 0)

    @property
    def left_out(self) -> frozenset[str]:
        """Queries in whose ranking the document of the same id is left out."""
        return self.own_ids if self.leave_out_queries else frozenset()


def load_tasks(
    names: Sequence[str],
    nanobeir_source: str = NANOBEIR_ID,
    nanobeir_revision: str | None = None,
    cache_dir: Folder = None,
) -> list[RetrievalTask]:
    """The tasks of all names, in the order given.

    Args:
        names: NanoBEIR names (`msmarco`, `nq`, ...), `docstrings`, BEIR folders (corpus.jsonl[.gz],
            queries.jsonl[.gz], qrels/test.tsv), or folders in NanoBEIR's layout, which give all of their sets.
        nanobeir_source: Hub id or folder that NanoBEIR names are looked up in.
        nanobeir_revision: branch, tag or commit of that Hub id; by default its newest.
        cache_dir: folder of the cache of docstrings.

    A UserError says what a name or folder lacks, that there is no network, or that two tasks have one name.
    """
    tasks = [task for name in names for task in load_task(name, nanobeir_source, nanobeir_revision, cache_dir)]
    counts = Counter(task.name for task in tasks)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise UserError(f"tasks: {', '.join(repeated)} would be evaluated twice under one name; give each once.")
    return tasks


def is_task(name: str) -> bool:
    """Whether `load_task` takes this name for one task: a known name or a BEIR folder."""
    return name.lower() in NANOBEIR_SPLITS or name == DOCSTRINGS or is_beir(local_path(name))


def load_task(
    name: str, nanobeir_source: str = NANOBEIR_ID, nanobeir_revision: str | None = None, cache_dir: Folder = None
) -> list[RetrievalTask]:
    """The tasks of one name or folder; see `load_tasks`."""
    folder = local_path(name)
    if name.lower() in NANOBEIR_SPLITS:
        return [_load_nanobeir(nanobeir_source, NANOBEIR_SPLITS[name.lower()], nanobeir_revision)]
    if name == DOCSTRINGS:
        return [_docstring_task(cache_dir)]
    if not folder.is_dir():
        known = ", ".join([*NANOBEIR_SPLITS, DOCSTRINGS])
        raise UserError(f"{name!r} is neither a folder nor a known task; known are {known}.")
    if is_beir(folder):
        return [_load_beir(folder)]
    if not all((folder / part).is_dir() for part in _PARTS):
        beir = "a BEIR folder (corpus.jsonl, queries.jsonl, qrels/test.tsv)"
        nanobeir = "one in NanoBEIR's layout (corpus/, queries/, qrels/ with one parquet file a set)"
        raise UserError(f"{name}: neither {beir} nor {nanobeir}.")
    if not (folder / "README.md").is_file():
        raise UserError(f"{name}: needs a README.md whose head names its configurations corpus, queries and qrels.")
    return [_load_nanobeir(name, split) for split in folder_splits(name, "corpus")]


def _load_nanobeir(source: str, split: str, revision: str | None = None) -> RetrievalTask:
    corpus, queries, judged = (open_texts(source, part, split, revision) for part in _PARTS)
    qrels: dict[str, dict[str, int]] = {}
    for path in judged.files:
        for _, (query_id, document_id) in read_rows(path, _JUDGED, _JUDGED, lists=True):
            qrels.setdefault(str(query_id), {})[str(document_id)] = 1
    return _checked(split, _texts(corpus), _texts(queries), qrels, f"{source} ({split})", group="NanoBEIR")


def _load_beir(folder: Path) -> RetrievalTask:
    corpus, queries = (open_texts(str(beir_file(folder, name))) for name in (_CORPUS, _QUERIES))
    qrels, texts = read_qrels(folder / "qrels" / "test.tsv"), _texts(corpus, titles=True)
    task = _checked(folder.resolve().name, texts, _texts(queries), qrels, str(folder), graded=True)
    # Not where documents and queries are merely numbered alike: then the texts of one id differ.
    same = [task.queries[id] in task.corpus[id] for id in task.own_ids]
    return replace(task, leave_out_queries=bool(same) and all(same))


def _texts(source: TextSource, titles: bool = False) -> dict[str, str]:
    """Id to text, of documents with the title before it."""
    columns = ["_id", *(["title"] if titles and "title" in source.columns else []), "text"]
    rows = read_unique(source.files, columns)
    return {str(id): " ".join(part for part in parts if part).strip() for id, *parts in rows}


def _docstring_task(cache_dir: Folder) -> RetrievalTask:
    docstrings = load_docstrings(cache_dir)
    corpus = {d.name: document_text(d) for d in (*docstrings.held_out, *docstrings.distractors)}
    queries = {d.name: d.first_sentence for d in docstrings.held_out}
    return _checked(DOCSTRINGS, corpus, queries, {name: {name: 1} for name in queries}, DOCSTRINGS)


def _checked(
    name: str,
    corpus: dict[str, str],
    queries: dict[str, str],
    qrels: dict[str, dict[str, int]],
    source: str,
    **settings: Any,
) -> RetrievalTask:
    """The task without empty texts and without queries that no document answers; a UserError if nothing is left."""
    with_text = {document_id: text for document_id, text in corpus.items() if text}
    if not with_text:
        raise UserError(f"{name}: the corpus has no document with text.")
    check_ids(source, corpus, queries, qrels)
    answered = {query_id for query_id, grades in qrels.items() if any(grade > 0 for grade in grades.values())}
    queries = {query_id: text for query_id, text in queries.items() if text and query_id in answered}
    if not queries:
        raise UserError(f"{name}: no query has both a text and a relevant document.")
    return RetrievalTask(name, with_text, queries, {query_id: qrels[query_id] for query_id in queries}, **settings)


def sampled_ids(ids: Sequence[str], judged: Collection[str], max_documents: int, seed: int) -> set[str]:
    """Ids of a sample of a corpus: all judged ones and, up to `max_documents`, others drawn by chance."""
    others = [id for id in ids if id not in judged]
    room = max(max_documents - (len(ids) - len(others)), 0)
    if room >= len(others):
        return set(ids)
    drawn = np.random.default_rng(seed).choice(len(others), size=room, replace=False)
    return {id for id in ids if id in judged}.union(others[position] for position in drawn)


def is_beir(folder: Path) -> bool:
    """Whether a folder is in BEIR's layout; its judgements may be missing."""
    return all(beir_file(folder, name) for name in (_CORPUS, _QUERIES))


def beir_file(folder: Path, name: str) -> Path | None:
    """A file of a BEIR folder, gzipped or not; None if it is not there."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
