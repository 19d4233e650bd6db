"""Training pairs and a held-out task out of a corpus: queries are made of the documents' own structure."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np

from splade_lit.core.errors import UserError
from splade_lit.core.files import replace_text
from splade_lit.core.progress import WorkProgress
from splade_lit.core.tables import BATCH_ROWS
from splade_lit.data.collection import titled_file
from splade_lit.data.corpus import Corpus, open_corpus
from splade_lit.data.hub import local_path, open_texts
from splade_lit.data.pairs import Pairs
from splade_lit.data.tasks import is_task
from splade_lit.data.text_keys import document_key, hashes, query_key
from splade_lit.own_data.columns import MIN_PAIRS, OwnPairs, text_column_of
from splade_lit.own_data.held_out import HeldOut, given_test, pairs_as_corpus
from splade_lit.own_data.structure import Document, Kind, StructurePair, lead_pair, structure_pairs

_MOST_DOCUMENTS = 50_000  # that pairs are made of: more than the steps of a run that `init` writes get through
MOST_SHARING = 3  # documents that make one query: of more, it says too little about each ("Introduction")
_MOST_HELD_OUT = 500
_HELD_OUT_SHARE = 0.1
_MADE_PER_GIVEN = 2
GIVEN = "given"
"""The kind of pairs that were not made."""


@dataclass(frozen=True)
class TitledCorpus:
    """Documents with their titles apart, read as they are asked for; `num_rows` counts those without text too."""

    source: str
    num_rows: int
    rows: Callable[[], Iterator[Document]]

    def __iter__(self) -> Iterator[Document]:
        """The documents with text."""
        return (document for document in self.rows() if document.text.strip())


@dataclass(frozen=True)
class MadePairsFacts:
    """What became of the documents of a corpus.

    Attributes:
        num_documents: rows of the corpus.
        num_empty: of them, those without text.
        num_copies: those whose text an earlier one has; no pairs are made of them.
        num_not_drawn: those left aside because there are more than enough.
        num_short: those too short for any pair.
        num_shared: pairs left out because more than three have their query.
        num_held_out: documents that test queries are made of, and no pairs.
        made: pairs of each kind.
        tests: test queries of each kind.
    """

    num_documents: int
    num_empty: int
    num_copies: int
    num_not_drawn: int
    num_short: int
    num_shared: int
    num_held_out: int
    made: Mapping[Kind, int]
    tests: Mapping[Kind, int]


@dataclass(frozen=True)
class MadePairs:
    """Pairs with the kind of each, `Kind` or `GIVEN`, and the task of queries that were made of other documents.

    `held_out` is None where no test queries were to be made.
    """

    own: OwnPairs
    kinds: Sequence[str]
    held_out: HeldOut | None
    facts: MadePairsFacts


def read_titled(source: str, text_column: str | None, title_column: str | None) -> TitledCorpus:
    """A corpus whose titles are in a column `title`, or one that is named, if there is one; such are not searched.

    Raises:
        UserError: as `open_corpus`; a column is not there, or that of texts has no usual name.
    """
    folder, file = local_path(source), source
    if path := titled_file(folder):
        file, text_column = str(path), "text"
    elif is_task(source):
        return _untitled(open_corpus(source))
    opened = open_texts(file)
    column = text_column_of(source, opened.columns, text_column)
    ids = [name for name in ("_id", "id") if name in opened.columns and name != column][:1]
    has_titles = title_column or ("title" in opened.columns and column != "title")
    titles = [title_column or "title"] if has_titles else []
    dataset = opened.read([*ids, *titles, column], id_column=bool(ids))

    def rows() -> Iterator[Document]:
        for start in range(0, len(dataset), BATCH_ROWS):
            batch = dataset[start : start + BATCH_ROWS]
            texts = batch[column]
            names = batch[ids[0]] if ids else map(str, range(start, start + len(texts)))
            heads = batch[titles[0]] if titles else [None] * len(texts)
            for id, title, text in zip(names, heads, texts, strict=True):
                yield Document(id, title or "", text or "", titles in ([], ["title"]))

    return TitledCorpus(source, len(dataset), rows)


def pairs_of_corpus(
    corpus: TitledCorpus,
    path: Path,
    name: str,
    test_queries: bool = True,
    num_queries: int | None = None,
    max_documents: int = 2_500,
    seed: int = 0,
) -> MadePairs:
    """Make pairs of the documents' structure, and a task of queries that are made of documents set aside for it.

    In the task's corpus every document is without what a query is made of (its title, else its first sentence), those
    that are trained on too: no query is found where it was taken from. Which documents are set aside depends on their
    queries' texts and the seed alone. Nothing is written.

    Args:
        corpus: the documents.
        path: where the pairs will be written: their source.
        name: of the task.
        test_queries: whether to make test queries; without them pairs are made of all documents.
        num_queries: how many, by default of a tenth of the documents, 500 at most.
        max_documents: of the task.
        seed: of what is drawn.

    Raises:
        UserError: the documents are too few or too short to train and to test with.
    """
    keys = hashes(document_key(document.searched) for document in corpus)
    documents = list(_drawn(corpus, keys, seed))
    tests = _drawn_tests(documents, num_queries, seed) if test_queries else {}
    aside = {document.id for _, found in tests.values() for document in found}
    pairs, num_short = _pairs_of([document for document in documents if document.id not in aside], seed)
    kept = [pair for same in _by_query(pairs).values() if len(same) <= MOST_SHARING for pair in same]
    distinct = len(np.unique(keys))
    if len(kept) < MIN_PAIRS or (test_queries and not tests):
        fewer = f"hold out fewer than {num_queries} queries (--held-out), " if num_queries else ""
        raise UserError(
            f"{corpus.source}: its {corpus.num_rows:,} documents, {distinct:,} different ones, give {len(kept)} pairs "
            f"to train on and {len(tests)} queries to test with, which is too little; {fewer}give more or longer "
            f"documents (for {MIN_PAIRS} pairs at least), titles with --title-column, or pairs with --pairs."
        )
    order = np.argsort(hashes(f"{seed} {pair.query} {pair.document}" for pair in kept), kind="stable")
    kept = [kept[place] for place in order.tolist()]  # the first rows are a fair sample of all
    texts = {"query": [pair.query for pair in kept], "document": [pair.document for pair in kept]}
    own = _own_pairs(texts, path)
    facts = MadePairsFacts(
        num_documents=corpus.num_rows,
        num_empty=corpus.num_rows - len(keys),
        num_copies=len(keys) - distinct,
        num_not_drawn=distinct - len(documents),
        num_short=num_short,
        num_shared=len(pairs) - len(kept),
        num_held_out=len(aside),
        made=Counter(pair.kind for pair in kept),
        tests=Counter(lead.kind for lead, _ in tests.values()),
    )
    held_out = _task(own.pairs, corpus, tests, max_documents, name) if tests else None
    return MadePairs(own, [pair.kind for pair in kept], held_out, facts)


def titled_pairs(pairs: Pairs) -> TitledCorpus:
    """The distinct documents of pairs as a corpus, for want of another."""
    return _untitled(pairs_as_corpus(pairs))


def _untitled(corpus: Corpus) -> TitledCorpus:
    assert corpus.num_rows is not None, "open_corpus counts"
    return TitledCorpus(corpus.source, corpus.num_rows, lambda: (Document(id, "", text) for id, text in corpus.rows()))


def with_made_pairs(own: OwnPairs, corpus: TitledCorpus, path: Path, num_pairs: int, seed: int = 0) -> MadePairs | None:
    """Pairs that are too few, and others made of the documents, shuffled: `num_pairs` or more in all.

    At least so many pairs are made that a third is given, as far as the documents go. Nothing is written.

    Args:
        own: the pairs that are given; their test queries may be among them.
        corpus: the documents.
        path: where the pairs will be written: their source.
        num_pairs: pairs of both kinds, at least.
        seed: of what is drawn.

    Returns:
        The pairs, or None if the documents are too short to make pairs of.
    """
    try:
        made = pairs_of_corpus(corpus, path, "", test_queries=False, seed=seed)
    except UserError:
        return None
    number = max(_MADE_PER_GIVEN * len(own.pairs), num_pairs - len(own.pairs))
    drawn = made.own.pairs.select(np.arange(min(number, len(made.own.pairs))))
    kinds = [GIVEN] * len(own.pairs) + list(made.kinds[: len(drawn)])
    texts = {name: [*own.pairs.dataset[name], *drawn.dataset[name]] for name in ("query", "document")}
    keys = (f"{seed} {query} {document}" for query, document in zip(*texts.values(), strict=True))
    order = np.argsort(hashes(keys), kind="stable").tolist()
    kinds = [kinds[place] for place in order]
    mixed = _own_pairs({name: [each[place] for place in order] for name, each in texts.items()}, path)
    facts = replace(made.facts, made=Counter(Kind(kind) for kind in kinds if kind != GIVEN))
    return MadePairs(mixed, kinds, None, facts)


def write_pairs(made: MadePairs, path: Path) -> None:
    """Write the pairs as jsonl: query, answer, kind.

    Raises:
        UserError: the file cannot be written.
    """
    rows = zip(made.own.pairs.dataset, made.kinds, strict=True)
    lines = ({"query": row["query"], "answer": row["document"], "kind": str(kind)} for row, kind in rows)
    replace_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _own_pairs(texts: dict[str, list[str]], path: Path) -> OwnPairs:
    pairs = Pairs(datasets.Dataset.from_dict(texts), str(path))
    return OwnPairs(pairs, len(pairs), "query", "answer", [])


_Tests = dict[str, tuple[StructurePair, list[Document]]]


def _drawn(corpus: TitledCorpus, keys: np.ndarray, seed: int) -> Iterator[Document]:
    """The first of each text, and of these as many as are enough, drawn by a hash of their texts."""
    _, first = np.unique(keys, return_index=True)
    if len(first) > _MOST_DOCUMENTS:
        order = np.argsort(hashes(f"{seed} {key}" for key in keys[first].tolist()), kind="stable")
        first = first[order[:_MOST_DOCUMENTS]]
    wanted = set(first.tolist())
    return (document for place, document in enumerate(corpus) if place in wanted)


def _drawn_tests(documents: Sequence[Document], num_queries: int | None, seed: int) -> _Tests:
    """Queries by key, and the documents that make each; drawn of all that few enough documents make."""
    makers: _Tests = {}
    for document in documents:
        if lead := lead_pair(document):
            makers.setdefault(query_key(lead.query), (lead, []))[1].append(document)
    fit = [key for key, (_, found) in makers.items() if len(found) <= MOST_SHARING]
    order = np.argsort(hashes(f"{seed} {key}" for key in fit), kind="stable").tolist()
    number = num_queries or min(_MOST_HELD_OUT, max(1, round(len(fit) * _HELD_OUT_SHARE)))
    return {fit[place]: makers[fit[place]] for place in order[:number]}


def _pairs_of(documents: Sequence[Document], seed: int) -> tuple[list[StructurePair], int]:
    """The pairs of all documents, and how many documents give none."""
    pairs: list[StructurePair] = []
    num_short = 0
    with WorkProgress("making pairs", "documents", len(documents)) as progress:
        for document in documents:
            made = structure_pairs(document, seed)
            num_short += not made
            pairs += made
            progress.advance(1)
    return pairs, num_short


def _by_query(pairs: Iterable[StructurePair]) -> dict[str, list[StructurePair]]:
    found: dict[str, list[StructurePair]] = {}
    for pair in pairs:
        found.setdefault(query_key(pair.query), []).append(pair)
    return found


def _task(pairs: Pairs, corpus: TitledCorpus, tests: _Tests, max_documents: int, name: str) -> HeldOut:
    names = {key: f"q{number}" for number, key in enumerate(tests, start=1)}
    answered = {document_key(d.searched): names[key] for key, (_, found) in tests.items() for d in found}
    qrels: dict[str, dict[str, int]] = {}
    for document in corpus:  # copies answer too
        if query := answered.get(document_key(document.searched)):
            qrels.setdefault(query, {})[document.id] = 1

    def rows() -> Iterator[tuple[str, str]]:
        for document in corpus:
            lead = lead_pair(document)
            yield document.id, lead.document if lead else document.searched

    queries = {names[key]: lead.query for key, (lead, _) in tests.items()}
    return given_test(pairs, Corpus(corpus.num_rows, rows, corpus.source), queries, qrels, max_documents, name)
