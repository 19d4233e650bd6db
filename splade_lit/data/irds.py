"""Data sets of the library ir_datasets, by `irds:` and their id, such as `irds:beir/nfcorpus/test`.

MacAvaney et al. (2021), "Simplified data wrangling with ir_datasets". The library downloads a set when it is first
used, and keeps it in a folder of its own; sets that a program has registered with it are found as well.
"""

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from splade_lit.core.errors import UserError
from splade_lit.data.collection import Collection, Lookup, Qrels, join_text

IRDS = "irds:"
_KINDS = ("docs", "queries", "qrels", "docpairs", "scoreddocs")

logger = logging.getLogger(__name__)


def is_irds(source: str) -> bool:
    """Whether a source is an id of ir_datasets."""
    return source.startswith(IRDS)


def open_irds(source: str) -> Collection:
    """The data set of an id; nothing is read or downloaded yet.

    A UserError says that the library is not installed, or knows no such id; what is read later raises one where it
    cannot be read or downloaded.
    """
    dataset, id = _dataset(source)

    def reader(kind: str, read: Callable[[Any], Any]) -> Callable[[], Any]:
        def of() -> Any:
            if not dataset.has(kind):
                raise UserError(f"{source}: the set has no {kind}{_narrower(id)}.")
            with _plain_errors(source):
                return read(dataset)

        return of

    def optional(kind: str, read: Callable[[Any], Any]) -> Callable[[], Any] | None:
        return reader(kind, read) if dataset.has(kind) else None

    return Collection(
        source,
        _state(id, dataset),
        corpus=reader("docs", lambda one: _texts(source, one.docs_iter(), "doc_id")),
        queries=reader("queries", lambda one: _texts(source, one.queries_iter(), "query_id")),
        qrels=optional("qrels", lambda one: _qrels(source, one.qrels_iter())),
        lookup=reader("docs", lambda one: _lookup(source, one)),
        triples=optional("docpairs", lambda one: _tuples(source, one.docpairs_iter(), "doc_id_a", "doc_id_b")),
        scored=optional("scoreddocs", lambda one: _tuples(source, one.scoreddocs_iter(), "doc_id", "score")),
        num_documents=_count(dataset),
    )


def text_of(record: Any) -> str:
    """The text of a document or query, titles before texts: what the library takes by default, or its usual fields."""
    if hasattr(record, "default_text"):
        return str(record.default_text()).strip()
    return join_text(getattr(record, name, None) for name in ("title", "text"))


def _dataset(source: str) -> tuple[Any, str]:
    id = source.removeprefix(IRDS)
    try:
        import ir_datasets
    except ImportError as error:
        raise UserError(
            f"{source} needs ir_datasets; run `pip install -c constraints.txt -e '.[ir_datasets]'`."
        ) from error
    try:
        return ir_datasets.load(id), id
    except KeyError as error:
        near = get_close_matches(id, list(ir_datasets.registry), n=3, cutoff=0.7)
        hint = f"; did you mean {', '.join(near)}?" if near else "; its ids are on https://ir-datasets.com."
        raise UserError(f"{source}: ir_datasets knows no set {id!r}{hint}") from error


def _narrower(id: str) -> str:
    """Ids of parts of a set, which often have what the whole has not."""
    import ir_datasets

    parts = [name for name in ir_datasets.registry if name.startswith(f"{id}/")][:6]
    return f"; there are {', '.join(parts)}" if parts else ""


def _state(id: str, dataset: Any) -> str:
    """What changes where the set does: the version of the library, and the local files of a set of one's own."""
    from ir_datasets.util import LocalDownload

    handlers = [getattr(dataset, f"{kind}_handler")() for kind in _KINDS if dataset.has(kind)]
    local = [one for handler in handlers for one in vars(handler).values() if isinstance(one, LocalDownload)]
    files = [path for one in local if (path := Path(one.path(force=False))).is_file()]
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return repr((id, version("ir_datasets"), states))


def _count(dataset: Any) -> int | None:
    return dataset.docs_count() if dataset.has("docs") else None


@contextmanager
def _plain_errors(source: str) -> Iterator[None]:
    """Turn what the library raises where it cannot download or read a set into a UserError of one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = shorten(f"{type(error).__name__}: {error}".replace("\n", " "), 300, placeholder=" ...")
        ways = "connect to the network, or read what https://ir-datasets.com says about the set"
        raise UserError(f"{source} cannot be read ({reason}); {ways}.") from error


def _checked(source: str, records: Iterator[Any]) -> Iterator[Any]:
    """The records, with errors in a sentence while they come."""
    with _plain_errors(source):
        yield from records


def _texts(source: str, records: Iterator[Any], id_field: str) -> Iterator[tuple[str, str]]:
    """Id and text of each record; a UserError where two have one id."""
    keys = array("q")
    for record in _checked(source, records):
        id = getattr(record, id_field)
        keys.append(hash(id))
        yield id, text_of(record)
    if doubled := len(keys) - len(np.unique(np.frombuffer(keys, np.int64))):
        raise UserError(f"{source}: {doubled} of {len(keys)} have the {id_field} of another; the set is damaged.")


def _tuples(source: str, records: Iterator[Any], *fields: str) -> Iterator[tuple[Any, ...]]:
    for record in _checked(source, records):
        yield tuple(getattr(record, field) for field in ("query_id", *fields))


def _qrels(source: str, records: Iterator[Any]) -> Qrels:
    """The judgements; of several for one document, as those of subtopics, the highest grade counts."""
    qrels: Qrels = {}
    repeated: Counter[str] = Counter()
    for record in _checked(source, records):
        if (grade := getattr(record, "relevance", None)) is None:
            raise UserError(f"{source}: its judgements have no grades of relevance, but {', '.join(record._fields)}.")
        grades = qrels.setdefault(record.query_id, {})
        repeated[record.query_id] += record.doc_id in grades
        grades[record.doc_id] = max(grade, grades.get(record.doc_id, grade))
    if count := repeated.total():
        logger.warning("%s: %d judgements repeat a document for its query; the highest grade counts.", source, count)
    return qrels


def _lookup(source: str, dataset: Any) -> Lookup:
    store = dataset.docs_store()

    def lookup(ids: Sequence[str]) -> Mapping[str, str]:
        with _plain_errors(source):
            return {id: text_of(document) for id, document in store.get_many(set(ids)).items()}

    return lookup
