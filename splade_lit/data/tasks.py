"""Retrieval tasks: NanoBEIR from the Hub or a folder, BEIR folders, docstrings; all become a `RetrievalTask`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from splade_lit.core.errors import UserError
from splade_lit.core.sources import NANOBEIR_ID
from splade_lit.core.tables import read_rows, read_unique
from splade_lit.core.text import check_ids, read_qrels
from splade_lit.data.docstrings import document_text, load_docstrings
from splade_lit.data.hub import TextSource, folder_splits, local_path, open_texts

NANOBEIR_SPLITS = {
    "climatefever": "NanoClimateFEVER",
    "dbpedia": "NanoDBPedia",
    "fever": "NanoFEVER",
    "fiqa2018": "NanoFiQA2018",
    "hotpotqa": "NanoHotpotQA",
    "msmarco": "NanoMSMARCO",
    "nfcorpus": "NanoNFCorpus",
    "nq": "NanoNQ",
    "quoraretrieval": "NanoQuoraRetrieval",
    "scidocs": "NanoSCIDOCS",
    "arguana": "NanoArguAna",
    "scifact": "NanoSciFact",
    "touche2020": "NanoTouche2020",
}
DOCSTRINGS = "docstrings"
_JUDGED = ("query-id", "corpus-id")
_CORPUS, _QUERIES = "corpus.jsonl", "queries.jsonl"


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, a corpus, and which of its documents answer which query.

    Attributes:
        name: under which metrics are logged, `NanoNQ`.
        corpus: document id to text.
        queries: query id to text; each has a relevant document in `qrels`.
        qrels: query id to document id to grade; grades of 0 or less are judged and not relevant.
        graded: whether nDCG uses the grades as gains; otherwise every relevant document counts 1.
        group: tasks of one group are also averaged.
        leave_out_queries: whether the document with a query's own id is left out of its ranking, unless it is relevant:
            in ArguAna and Quora the queries are documents too. BEIR does so, sentence-transformers' evaluators do not.
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
    cache_dir: str | Path | None = None,
) -> list[RetrievalTask]:
    """The tasks of all names, in the order given.

    Args:
        names: NanoBEIR names (`msmarco`, `nq`, ...), `docstrings`, BEIR folders (corpus.jsonl[.gz],
            queries.jsonl[.gz], qrels/test.tsv), or folders in NanoBEIR's layout, which give all of their sets.
        nanobeir_source: Hub id or folder of the data set that NanoBEIR names are looked up in.
        nanobeir_revision: branch, tag or commit of that Hub data set; by default its newest.
        cache_dir: folder of the cache of docstrings.

    Raises:
        UserError: an unknown name, a folder of neither layout, no network, missing columns, an empty set, or two
            tasks of one name.
    """
    tasks = [task for name in names for task in load_task(name, nanobeir_source, nanobeir_revision, cache_dir)]
    task_names = [task.name for task in tasks]
    if repeated := sorted({name for name in task_names if task_names.count(name) > 1}):
        raise UserError(f"tasks: {', '.join(repeated)} would be evaluated twice under one name; give each once.")
    return tasks


def is_task(name: str) -> bool:
    """Whether `load_task` takes this name for one task: a known name or a BEIR folder."""
    return name.lower() in NANOBEIR_SPLITS or name == DOCSTRINGS or is_beir(local_path(name))


def load_task(
    name: str,
    nanobeir_source: str = NANOBEIR_ID,
    nanobeir_revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> list[RetrievalTask]:
    """The tasks of one name or folder; see `load_tasks`."""
    folder = local_path(name)
    if name.lower() in NANOBEIR_SPLITS:
        tasks = [_load_nanobeir(nanobeir_source, NANOBEIR_SPLITS[name.lower()], nanobeir_revision)]
    elif name == DOCSTRINGS:
        tasks = [_docstring_task(cache_dir)]
    elif not folder.is_dir():
        known = ", ".join([*NANOBEIR_SPLITS, DOCSTRINGS])
        raise UserError(f"{name!r} is neither a folder nor a known task; known are {known}.")
    elif is_beir(folder):
        tasks = [_load_beir(folder)]
    elif all((folder / part).is_dir() for part in ("corpus", "queries", "qrels")):
        if not (folder / "README.md").is_file():
            raise UserError(f"{name}: needs a README.md whose head names its configurations corpus, queries and qrels.")
        tasks = [_load_nanobeir(name, split) for split in folder_splits(name, "corpus")]
    else:
        raise UserError(
            f"{name}: neither a BEIR folder (corpus.jsonl, queries.jsonl, qrels/test.tsv) nor one in NanoBEIR's layout "
            "(corpus/, queries/, qrels/ with one parquet file a set)."
        )
    return tasks


def _load_nanobeir(source: str, split: str, revision: str | None = None) -> RetrievalTask:
    corpus, queries, qrels = (open_texts(source, config, split, revision) for config in ("corpus", "queries", "qrels"))
    relevant: dict[str, dict[str, int]] = {}
    for path in qrels.files:
        for _, (query_id, document_id) in read_rows(path, _JUDGED, _JUDGED, lists=True):
            relevant.setdefault(str(query_id), {})[str(document_id)] = 1
    task = RetrievalTask(split, _texts(corpus), _texts(queries), relevant, group="NanoBEIR")
    return _checked(task, f"{source} ({split})")


def _load_beir(folder: Path) -> RetrievalTask:
    corpus, queries = (open_texts(str(beir_file(folder, name))) for name in (_CORPUS, _QUERIES))
    qrels = read_qrels(folder / "qrels" / "test.tsv")
    task = _checked(
        RetrievalTask(folder.resolve().name, _texts(corpus, titles=True), _texts(queries), qrels, graded=True),
        str(folder),
    )
    # Not where documents and queries are merely numbered alike: then the texts of one id differ.
    same = [task.queries[id] in task.corpus[id] for id in task.own_ids]
    return replace(task, leave_out_queries=bool(same) and all(same))


def _texts(source: TextSource, titles: bool = False) -> dict[str, str]:
    """Id to text, of documents with the title before it."""
    columns = ["_id", *(["title"] if titles and "title" in source.columns else []), "text"]
    rows = read_unique(source.files, columns)
    return {str(id): " ".join(part for part in parts if part).strip() for id, *parts in rows}


def _docstring_task(cache_dir: str | Path | None) -> RetrievalTask:
    docstrings = load_docstrings(cache_dir)
    return _checked(
        RetrievalTask(
            name=DOCSTRINGS,
            corpus={d.name: document_text(d) for d in (*docstrings.held_out, *docstrings.distractors)},
            queries={d.name: d.first_sentence for d in docstrings.held_out},
            qrels={d.name: {d.name: 1} for d in docstrings.held_out},
        ),
        DOCSTRINGS,
    )


def _checked(task: RetrievalTask, source: str) -> RetrievalTask:
    """The task without empty texts and without queries that no document answers.

    Raises:
        UserError: no document or no query is left, or the judgements name other ids.
    """
    corpus = {document_id: text for document_id, text in task.corpus.items() if text}
    queries = {
        query_id: text
        for query_id, text in task.queries.items()
        if text and any(grade > 0 for grade in task.qrels.get(query_id, {}).values())
    }
    if not corpus:
        raise UserError(f"{task.name}: the corpus has no document with text.")
    check_ids(source, task.corpus, task.queries, task.qrels)
    if not queries:
        raise UserError(f"{task.name}: no query has both a text and a relevant document.")
    qrels = {query_id: task.qrels[query_id] for query_id in queries}
    return replace(task, corpus=corpus, queries=queries, qrels=qrels)


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
