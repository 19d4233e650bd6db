"""Retrieval tasks: NanoBEIR from the Hub or a folder, BEIR folders, docstrings; all become a `RetrievalTask`."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splade_lit.core.errors import UserError
from splade_lit.data.docstrings import document_text, load_docstrings
from splade_lit.data.hub import local_path, read_config_splits, read_dataset, require_columns, require_text

NANOBEIR_ID = "sentence-transformers/NanoBEIR-en"
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
    """

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    graded: bool = False
    group: str | None = None


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
        cache_dir: folder of the docstrings' cache.

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
        tasks = [_load_nanobeir(name, split) for split in read_config_splits(name, "corpus")]
    else:
        raise UserError(
            f"{name}: neither a BEIR folder (corpus.jsonl, queries.jsonl, qrels/test.tsv) nor one in NanoBEIR's layout "
            "(corpus/, queries/, qrels/ with one parquet file a set)."
        )
    return tasks


def _load_nanobeir(source: str, split: str, revision: str | None = None) -> RetrievalTask:
    corpus, queries, qrels = (
        read_dataset(source, config, split, revision) for config in ("corpus", "queries", "qrels")
    )
    for config, dataset in (("corpus", corpus), ("queries", queries)):
        require_columns(dataset, ("_id", "text"), f"{source} ({config}, {split})")
        require_text(dataset, ("text",), f"{source} ({config}, {split})")
    require_columns(qrels, ("query-id", "corpus-id"), f"{source} (qrels, {split})")
    relevant: dict[str, dict[str, int]] = {}
    for query_id, document_ids in zip(qrels["query-id"], qrels["corpus-id"], strict=True):
        documents = document_ids if isinstance(document_ids, list) else [document_ids]
        relevant.setdefault(str(query_id), {}).update((str(document), 1) for document in documents)
    return _checked(
        RetrievalTask(
            name=split,
            corpus=dict(zip(map(str, corpus["_id"]), corpus["text"], strict=True)),
            queries=dict(zip(map(str, queries["_id"]), queries["text"], strict=True)),
            qrels=relevant,
            group="NanoBEIR",
        )
    )


def beir_documents(folder: Path) -> Iterator[tuple[str, str]]:
    """`(id, text)` of each document of a BEIR folder, as they are read; the title stands before the text.

    Raises:
        UserError: a line is no document.
    """
    for row in _read_jsonl(folder, "corpus"):
        yield row["_id"], f"{row.get('title') or ''} {row['text']}".strip()


def count_beir_documents(folder: Path) -> int:
    """Documents of a BEIR folder, those without text among them.

    Raises:
        UserError: the file cannot be read.
    """
    with _open_jsonl(folder, "corpus") as (_, lines):
        return sum(1 for line in lines if line.strip())


def _load_beir(folder: Path) -> RetrievalTask:
    return _checked(
        RetrievalTask(
            name=folder.resolve().name,
            corpus=dict(beir_documents(folder)),
            queries={row["_id"]: row["text"].strip() for row in _read_jsonl(folder, "queries")},
            qrels=read_qrels(folder / "qrels" / "test.tsv"),
            graded=True,
        )
    )


def _docstring_task(cache_dir: str | Path | None) -> RetrievalTask:
    docstrings = load_docstrings(cache_dir)
    return _checked(
        RetrievalTask(
            name=DOCSTRINGS,
            corpus={d.name: document_text(d) for d in (*docstrings.held_out, *docstrings.distractors)},
            queries={d.name: d.first_sentence for d in docstrings.held_out},
            qrels={d.name: {d.name: 1} for d in docstrings.held_out},
        )
    )


def _checked(task: RetrievalTask) -> RetrievalTask:
    """The task without empty texts and without queries that no document answers.

    Raises:
        UserError: no document or no query is left.
    """
    corpus = {document_id: text for document_id, text in task.corpus.items() if text}
    queries = {
        query_id: text
        for query_id, text in task.queries.items()
        if text and any(grade > 0 for grade in task.qrels.get(query_id, {}).values())
    }
    if not corpus:
        raise UserError(f"{task.name}: the corpus has no document with text.")
    if not queries:
        raise UserError(f"{task.name}: no query has both a text and a relevant document.")
    qrels = {query_id: task.qrels[query_id] for query_id in queries}
    return RetrievalTask(task.name, corpus, queries, qrels, task.graded, task.group)


def is_beir(folder: Path) -> bool:
    """Whether a folder is in BEIR's layout; its judgements may be missing."""
    return all(_find(folder, name) for name in ("corpus.jsonl", "queries.jsonl"))


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_jsonl(folder: Path, stem: str) -> Iterator[dict[str, Any]]:
    with _open_jsonl(folder, stem) as (path, lines):
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                row = {**row, "_id": str(row["_id"]), "text": str(row["text"] or "")}
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{path}, line {number}: not a JSON object with `_id` and `text`.") from error
            yield row


@contextmanager
def _open_jsonl(folder: Path, stem: str) -> Iterator[tuple[Path, Iterator[str]]]:
    path = _find(folder, f"{stem}.jsonl")
    assert path is not None  # the folder was recognised by it
    opener = gzip.open if path.suffix == ".gz" else open
    with _damage_told(path), opener(path, "rt", encoding="utf-8") as lines:
        yield path, lines


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Query id to document id to grade, from a file of tab-separated `query-id`, `corpus-id` and `score`.

    Raises:
        UserError: there is no such file, or it is none of judgements.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; a BEIR folder needs its judgements in qrels/test.tsv.")
    qrels: dict[str, dict[str, int]] = {}
    with _damage_told(path), path.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t")
        missing = {"query-id", "corpus-id", "score"} - set(rows.fieldnames or ())
        if missing:
            there = ", ".join(rows.fieldnames or ["none"])
            raise UserError(f"{path}: no column {', '.join(sorted(missing))} in its first line; there are {there}.")
        for row in rows:
            try:
                qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
            except (TypeError, ValueError) as error:
                raise UserError(f"{path}, line {rows.line_num}: the score is not a whole number.") from error
    return qrels


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
