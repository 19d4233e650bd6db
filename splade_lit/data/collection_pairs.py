"""Training pairs out of test collections: from judgements, from triples, or from documents that a system has scored.

They become a file of the cache, made once for a source as it is, whose columns are those of mined data sets: `query`,
`answer`, `negative_1` and so on, and `scores` where there are some. The ids stand beside them. A document's text is
looked up when its pair is written, so that a corpus of millions is never in memory.
"""

import json
import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from splade_lit.core.errors import UserError
from splade_lit.core.files import Folder, cache_folder, whole_file
from splade_lit.core.progress import counted
from splade_lit.core.tables import BATCH_ROWS
from splade_lit.data.collection import (
    TRIPLE,
    Collection,
    Qrels,
    check_split,
    is_collection,
    open_folder,
    split_source,
    splits_of,
    text_triples,
)
from splade_lit.data.hub import TextSource, check_source, open_texts
from splade_lit.data.irds import is_irds, open_irds

QRELS, TRIPLES, DOCPAIRS, SCORED = "qrels", "triples", "docpairs", "scoreddocs"
_NOTES = b"splade_lit_notes"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Which pairs of a test collection are taken.

    Attributes:
        min_grade: the lowest grade of a document that answers its query.
        num_negatives: hard negatives a pair, of documents that a system has scored.
        limit: the first so many triples or pairs of scored documents; all if None.
    """

    min_grade: int = 1
    num_negatives: int = 1
    limit: int | None = None


@dataclass(frozen=True)
class _Row:
    """Ids of a query and its documents, the answer first, and the score of each, if there are some."""

    query_id: str
    document_ids: tuple[str, ...]
    scores: tuple[float | None, ...] | None = None


def open_pairs(
    source: str,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    cache_dir: Folder = None,
    choice: Choice = Choice(),
) -> TextSource:
    """One split of a source of pairs: what `open_texts` takes, a test collection, or a file of triples.

    - `FOLDER` or `FOLDER:SPLIT`, a folder with the field's names (see `collection`): its judgements, or with the
      configuration `triples` its triples.
    - `irds:ID`: the judgements of the data set; with the configuration `docpairs` its triples, with `scoreddocs` the
      documents that a system has scored, beside the answer that the judgements name.
    - a csv or tsv file with the configuration `triples`: query, relevant document and other document in columns without
      a line of names, as MS MARCO's triples.train.small.tsv.

    A UserError is that of `open_texts`, or says that the collection lacks what was asked for.
    """
    if is_irds(source):
        return _stored(open_irds(source), config, choice, cache_dir)
    path, given = split_source(source)
    split = given or split
    if path.is_file() and config == TRIPLES:
        return TextSource(source, (path,), TRIPLE, cache_dir, no_header=True)
    if path.is_dir() and is_collection(path) and (config in (QRELS, TRIPLES) or splits_of(path)):
        if config == TRIPLES and (triples := text_triples(path, split)):
            return TextSource(source, (triples,), TRIPLE, cache_dir, no_header=True)
        if config in (None, QRELS):
            check_split(path, split)
        return _stored(open_folder(path, split, cache_dir), config, choice, cache_dir)
    return open_texts(source, config, split, revision, cache_dir)


def check_pairs(source: str, config: str | None = None, split: str = "train") -> None:
    """Raise a UserError if a source can be known not to have such pairs, before anything is loaded."""
    if is_irds(source):
        _kind(open_irds(source), config)
        return
    path, given = split_source(source)
    if not path.is_dir():
        check_source(source)
    elif is_collection(path) and splits_of(path) and config in (None, QRELS):
        check_split(path, given or split)


def has_judgements(source: str, split: str = "train") -> bool:
    """Whether a source of pairs is a test collection with judgements of the split."""
    if is_irds(source):
        return open_irds(source).qrels is not None
    path, given = split_source(source)
    return path.is_dir() and is_collection(path) and (given or split) in splits_of(path)


def _kind(collection: Collection, config: str | None) -> str:
    """Which pairs of a collection a configuration names: judgements, if there are some and none is given."""
    triples = DOCPAIRS if is_irds(collection.source) else TRIPLES
    kinds = {QRELS: collection.qrels, triples: collection.triples, SCORED: collection.scored}
    there = [kind for kind, of in kinds.items() if of is not None]
    kind = config or next(iter(there), QRELS)
    if kind not in there:
        has = f"it has {', '.join(there)}" if there else "it has none at all"
        raise UserError(f"{collection.source}: no pairs of the kind {kind} (data.config); {has}.")
    if config is None and len(there) > 1:
        others = ", ".join(there[1:])
        logger.info("%s: pairs are those of %s; data.config takes %s too.", collection.source, kind, others)
    return kind


def _stored(collection: Collection, config: str | None, choice: Choice, cache_dir: Folder) -> TextSource:
    """The pairs of a collection as a file of the cache."""
    kind, notes = _kind(collection, config), list[str]()
    if kind == QRELS:
        rows, choice = _judged(collection, choice.min_grade), Choice(choice.min_grade)
    else:
        rows = _scored(collection, choice, notes) if kind == SCORED else _triples(collection)
    key = xxhash.xxh3_64_hexdigest(repr((collection.state, kind, choice)).encode("utf-8", "surrogatepass"))
    path = cache_folder(cache_dir) / "pairs" / f"{key}.parquet"
    if not path.is_file():
        try:
            _write(path, collection, rows, choice.limit, notes)
        except OSError as error:
            place = "free space, or set data.cache_dir or SPLADE_LIT_CACHE to another folder"
            raise UserError(f"{path} cannot be written ({error.strerror}); {place}.") from error
    for note in json.loads((pq.read_metadata(path).metadata or {}).get(_NOTES, b"[]")):
        logger.warning("%s: %s", collection.source, note)
    return TextSource(collection.source, (path,), tuple(pq.read_schema(path).names), cache_dir)


def _write(path: Path, collection: Collection, rows: Iterator[_Row], limit: int | None, notes: list[str]) -> None:
    """Write pairs with their texts; those of a query or document that is not there are counted and left out.

    What a reader must know stands in the file, `notes` and those counts, so that it is told whenever the file is read.
    """
    queries, lookup = dict(collection.queries()), collection.lookup()
    written = no_query = no_document = no_score = 0
    writer = None
    batches = iter(lambda: list(islice(rows, BATCH_ROWS)), [])
    with whole_file(path) as temporary:
        try:
            for batch in counted(batches, f"looking up pairs of {collection.source}", "pairs"):
                texts = lookup([id for row in batch for id in row.document_ids])
                asked = [row for row in batch if row.query_id in queries]
                whole = [row for row in asked if all(id in texts for id in row.document_ids)]
                no_query, no_document = no_query + len(batch) - len(asked), no_document + len(asked) - len(whole)
                whole = whole[: None if limit is None else limit - written]
                if whole:
                    table = _table(whole, queries, texts)
                    writer = writer or pq.ParquetWriter(temporary, table.schema)
                    writer.write_table(table)
                written += len(whole)
                no_score += sum(row.scores is not None and row.scores[0] is None for row in whole)
                if limit is not None and written >= limit:
                    break
            if writer is None:
                lost = f"{no_query} name no query and {no_document} no document that is there"
                raise UserError(f"{collection.source}: no pair is left; of its pairs {lost}.")
            left_out = {"query": no_query, "document": no_document}
            notes += [
                f"{count:,} of {written + no_query + no_document:,} pairs name a {what} that is not there; left out."
                for what, count in left_out.items()
                if count
            ]
            if no_score:
                lack = f"{no_score:,} of {written:,} pairs have an answer without a score"
                notes.append(f"{lack}; a loss that learns from scores learns less from them.")
            writer.add_key_value_metadata({_NOTES.decode(): json.dumps(notes)})
        finally:
            if writer is not None:
                writer.close()


def _table(rows: Sequence[_Row], queries: Mapping[str, str], texts: Mapping[str, str]) -> pa.Table:
    """Rows of the file: texts, ids and scores."""
    num_documents = len(rows[0].document_ids)
    names = ["answer", *(f"negative_{number}" for number in range(1, num_documents))]
    columns = {"query": pa.array([queries[row.query_id] for row in rows], pa.string())}
    for position, name in enumerate(names):
        columns[name] = pa.array([texts[row.document_ids[position]] for row in rows], pa.string())
    if rows[0].scores is not None:
        columns["scores"] = pa.array([row.scores for row in rows], pa.list_(pa.float64()))
    columns["query_id"] = pa.array([row.query_id for row in rows], pa.string())
    for position, name in enumerate(names):
        columns[f"{name}_id"] = pa.array([row.document_ids[position] for row in rows], pa.string())
    return pa.table(columns)


def _judged(collection: Collection, min_grade: int) -> Iterator[_Row]:
    """A pair for each judgement of a grade that counts."""
    qrels = _qrels(collection)
    highest = max((grade for grades in qrels.values() for grade in grades.values()), default=0)
    if highest < min_grade:
        raise UserError(f"{collection.source}: no grade reaches data.min_grade {min_grade}; the highest is {highest}.")
    for query_id, grades in qrels.items():
        for document_id, grade in grades.items():
            if grade >= min_grade:
                yield _Row(query_id, (document_id,))


def _triples(collection: Collection) -> Iterator[_Row]:
    assert collection.triples is not None
    return (_Row(query, (positive, negative)) for query, positive, negative in collection.triples())


def _scored(collection: Collection, choice: Choice, notes: list[str]) -> Iterator[_Row]:
    """A pair for each relevant document, with the scored documents that are not relevant as negatives, best first.

    Without judgements the document of the highest score stands as the answer. Queries that have too few documents, or
    none that is relevant, are counted and left out. The best of each query are kept in memory, and nothing else.
    """
    qrels = _qrels(collection) if collection.qrels else None
    if qrels is None:
        notes.append("no judgements, so the best-scored document stands as the answer.")
    candidates = _candidates(collection, choice, qrels or {})
    with_scores = any(score for scores in candidates.values() for score in scores.values())
    if not with_scores:
        notes.append("its documents have no scores; the first ones of a query count.")

    def chosen(query_id: str, scores: Mapping[str, float]) -> tuple[list[str], list[str]]:
        """The relevant documents and the negatives of a query; neither where there are too few."""
        grades = (qrels or {}).get(query_id, {})
        relevant = [id for id, grade in grades.items() if grade >= choice.min_grade]
        if qrels is None:
            relevant = list(scores)[:1]
        others = [id for id in scores if id not in relevant and grades.get(id, 0) <= 0][: choice.num_negatives]
        return (relevant, others) if relevant and len(others) == choice.num_negatives else ([], [])

    # Counted before the first row is given, as a limit ends the reading early.
    if left_out := sum(not chosen(*query)[0] for query in candidates.items()):
        lacking = f"no relevant document or fewer than {choice.num_negatives} others that are scored"
        notes.append(f"{left_out:,} of {len(candidates):,} queries have {lacking}; left out.")
    for query_id, scores in candidates.items():
        relevant, others = chosen(query_id, scores)
        for answer in relevant:
            ids = (answer, *others)
            yield _Row(query_id, ids, tuple(scores.get(id) for id in ids) if with_scores else None)


def _candidates(collection: Collection, choice: Choice, qrels: Qrels) -> dict[str, dict[str, float]]:
    """Scores of each query's best documents and of all that are judged, best first; equal ones as they come."""
    assert collection.scored is not None
    found: dict[str, dict[str, float]] = {}
    lines = collection.scored()
    parts = iter(lambda: list(islice(lines, BATCH_ROWS)), [])
    for part in counted(parts, f"reading scored documents of {collection.source}", "documents"):
        for query_id, document_id, score in part:
            scores = found.setdefault(query_id, {})
            scores[document_id] = score
            if len(scores) > 4 * (choice.num_negatives + 1) + 2 * len(qrels.get(query_id, {})):
                found[query_id] = _best(scores, choice.num_negatives + 1, qrels.get(query_id, {}))
    return {id: _best(scores, choice.num_negatives + 1, qrels.get(id, {})) for id, scores in found.items()}


def _best(scores: Mapping[str, float], count: int, judged: Container[str]) -> dict[str, float]:
    """The judged documents and `count` others, best first."""
    ordered = sorted(scores, key=lambda id: -scores[id])
    others = dict.fromkeys([id for id in ordered if id not in judged][:count])
    return {id: scores[id] for id in ordered if id in judged or id in others}


def _qrels(collection: Collection) -> Qrels:
    assert collection.qrels is not None
    return collection.qrels()
