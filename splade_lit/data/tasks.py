"""Retrieval tasks: NanoBEIR, test collections by folder or id, docstrings; all become a `RetrievalTask`."""

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np

from splade_lit.core.errors import UserError
from splade_lit.core.files import Folder
from splade_lit.core.progress import counted
from splade_lit.core.sources import NANOBEIR_ID
from splade_lit.core.tables import BATCH_ROWS, read_rows, read_unique
from splade_lit.core.text import check_ids, warn_once
from splade_lit.data.collection import (
    Collection,
    Qrels,
    check_split,
    is_collection,
    open_folder,
    split_source,
    splits_of,
)
from splade_lit.data.docstrings import DOCSTRINGS, document_text, load_docstrings
from splade_lit.data.hub import TextSource, folder_splits, local_path, open_texts
from splade_lit.data.irds import IRDS, is_irds, open_irds

_NANOBEIR = ["ClimateFEVER", "DBPedia", "FEVER", "FiQA2018", "HotpotQA", "MSMARCO", "NFCorpus", "NQ", "QuoraRetrieval"]
_NANOBEIR += ["SCIDOCS", "ArguAna", "SciFact", "Touche2020"]
NANOBEIR_SPLITS = {name.lower(): f"Nano{name}" for name in _NANOBEIR}
_JUDGED = ("query-id", "corpus-id")
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
        measures: names of measures of the library ir_measures that are computed beside the other metrics.
    """

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    graded: bool = False
    group: str | None = None
    leave_out_queries: bool = False
    measures: tuple[str, ...] = ()

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
            queries.jsonl[.gz], qrels/test.tsv) and folders of MS MARCO's or TREC's files (see `collection`), with
            another split than test as `FOLDER:SPLIT`, folders in NanoBEIR's layout, which give all of their sets, or
            `irds:` and an id of ir_datasets.
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
    """Whether `load_task` takes this name for one task: a known name, a folder of one, or an id of ir_datasets."""
    folder, _ = split_source(name)
    known = name.lower() in NANOBEIR_SPLITS or name == DOCSTRINGS or is_irds(name)
    return known or (folder.is_dir() and is_collection(folder))


def load_task(
    name: str, nanobeir_source: str = NANOBEIR_ID, nanobeir_revision: str | None = None, cache_dir: Folder = None
) -> list[RetrievalTask]:
    """The tasks of one name or folder; see `load_tasks`."""
    folder = local_path(name)
    if name.lower() in NANOBEIR_SPLITS:
        return [_load_nanobeir(nanobeir_source, NANOBEIR_SPLITS[name.lower()], nanobeir_revision)]
    if name == DOCSTRINGS:
        return [_docstring_task(cache_dir)]
    if (found := _collection(name, cache_dir)) is not None:
        return [_of_collection(*found)]
    if not folder.is_dir():
        known = ", ".join([*NANOBEIR_SPLITS, DOCSTRINGS])
        raise UserError(f"{name!r} is neither a folder nor a known task; known are {known}, and irds:ID.")
    if not all((folder / part).is_dir() for part in _PARTS):
        beir = "a BEIR folder (corpus.jsonl, queries.jsonl, qrels/test.tsv)"
        nanobeir = "one in NanoBEIR's layout (corpus/, queries/, qrels/ with one parquet file a set)"
        raise UserError(f"{name}: neither {beir} nor {nanobeir}.")
    if not (folder / "README.md").is_file():
        raise UserError(f"{name}: needs a README.md whose head names its configurations corpus, queries and qrels.")
    return [_load_nanobeir(name, split) for split in folder_splits(name, "corpus")]


def task_queries(names: Sequence[str], cache_dir: Folder = None) -> list[str]:
    """The queries of tasks that have a relevant document; of a test collection no document is read for that.

    The arguments and the errors are those of `load_tasks`.
    """
    texts: list[str] = []
    for name in names:
        if name.lower() not in NANOBEIR_SPLITS and (found := _collection(name, cache_dir)) is not None:
            queries, qrels = _judged(found[0])
            answered = [queries[id] for id in _answered(qrels) if queries.get(id)]
            if not answered:
                raise UserError(f"{found[0].source}: no query has both a text and a relevant document.")
            texts += answered
        else:
            texts += [text for task in load_task(name, cache_dir=cache_dir) for text in task.queries.values()]
    return texts


def _load_nanobeir(source: str, split: str, revision: str | None = None) -> RetrievalTask:
    corpus, queries, judged = (open_texts(source, part, split, revision) for part in _PARTS)
    qrels: dict[str, dict[str, int]] = {}
    for path in judged.files:
        for _, (query_id, document_id) in read_rows(path, _JUDGED, _JUDGED, lists=True):
            qrels.setdefault(str(query_id), {})[str(document_id)] = 1
    return _checked(split, _texts(corpus), _texts(queries), qrels, f"{source} ({split})", group="NanoBEIR")


def _collection(name: str, cache_dir: Folder) -> tuple[Collection, str] | None:
    """The test collection that a name stands for, and the name of its task; None if it is none."""
    if is_irds(name):
        return open_irds(name), name.removeprefix(IRDS).replace("/", "-")
    folder, split = split_source(name)
    if not (folder.is_dir() and is_collection(folder)):
        return None
    splits = splits_of(folder)
    if split is None:
        split = splits[0] if len(splits) == 1 else "test"
    check_split(folder, split)
    task = folder.resolve().name
    return open_folder(folder, split, cache_dir), task if split == "test" else f"{task}-{split}"


def _judged(collection: Collection) -> tuple[dict[str, str], Qrels]:
    if collection.qrels is None:
        raise UserError(f"{collection.source} has no judgements, which a retrieval task needs.")
    return dict(collection.queries()), collection.qrels()


def _of_collection(collection: Collection, name: str) -> RetrievalTask:
    queries, qrels = _judged(collection)
    documents = collection.corpus()
    parts = iter(lambda: list(islice(documents, BATCH_ROWS)), [])
    corpus = dict(chain.from_iterable(counted(parts, f"reading {name}", "documents", collection.num_documents)))
    task = _checked(name, corpus, queries, qrels, collection.source, graded=True)
    # Not where documents and queries are merely numbered alike: then the texts of one id differ.
    same = [task.queries[id] in task.corpus[id] for id in task.own_ids]
    return replace(task, leave_out_queries=bool(same) and all(same))


def _texts(source: TextSource) -> dict[str, str]:
    """Id to text."""
    return {str(id): (text or "").strip() for id, text in read_unique(source.files, ["_id", "text"])}


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
    answered = _answered(qrels)
    if unanswered := sum(id in queries and id not in answered for id in qrels):
        warn_once(f"{source}: {unanswered} judged queries have no relevant document and are left out.")
    queries = {query_id: text for query_id, text in queries.items() if text and query_id in answered}
    if not queries:
        raise UserError(f"{name}: no query has both a text and a relevant document.")
    return RetrievalTask(name, with_text, queries, {query_id: qrels[query_id] for query_id in queries}, **settings)


def _answered(qrels: Qrels) -> dict[str, None]:
    """The queries that have a relevant document, in their order."""
    return {id: None for id, grades in qrels.items() if any(grade > 0 for grade in grades.values())}


def sampled_ids(ids: Sequence[str], judged: Container[str], max_documents: int, seed: int) -> set[str]:
    """Ids of a sample of a corpus: all judged ones and, up to `max_documents`, others drawn by chance."""
    others = [id for id in ids if id not in judged]
    room = max(max_documents - (len(ids) - len(others)), 0)
    if room >= len(others):
        return set(ids)
    drawn = np.random.default_rng(seed).choice(len(others), size=room, replace=False)
    return {id for id in ids if id in judged}.union(others[position] for position in drawn)
