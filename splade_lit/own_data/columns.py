"""Reading pairs, corpus and test queries of one's own, whose columns have names of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np

from splade_lit.core.errors import UserError
from splade_lit.core.text import read_qrels
from splade_lit.data.collection_pairs import open_pairs
from splade_lit.data.corpus import Corpus, load_corpus, open_corpus
from splade_lit.data.hub import open_texts
from splade_lit.data.pairs import DOCSTRINGS, Pairs, load_pairs
from splade_lit.data.tasks import is_task
from splade_lit.data.text_keys import query_hashes
from splade_lit.own_data.held_out import HeldOut, given_test, hold_out, pairs_as_corpus
from splade_lit.own_data.inspection import CorpusFacts, inspect_corpus

QUERY_COLUMNS = ("query", "question", "anchor", "sentence1", "title")
DOCUMENT_COLUMNS = ("answer", "document", "positive", "passage", "context", "sentence2", "text")
TEXT_COLUMNS = ("text", "contents", "content", "passage", "document", "body")
MIN_PAIRS = 20
_SHOWN = 40  # characters of a name: where a file has no line of names they are whole texts


@dataclass(frozen=True)
class OwnPairs:
    """Pairs with text, the rows of their source, those without text among them, and the names of its columns.

    Attributes:
        unused_columns: columns of the source that are no part of the pairs.
        config: which configuration of the source, if one is named.
    """

    pairs: Pairs
    num_rows: int
    query_column: str
    document_column: str
    negative_columns: list[str]
    positive_columns: Sequence[str] = ()
    unused_columns: Sequence[str] = ()
    config: str | None = None


@dataclass(frozen=True)
class OwnCorpus:
    """A corpus, what is in it, and how to find documents of pairs in it.

    Attributes:
        corpus: what is searched, titles before texts.
        match: the same with the texts that more documents of the pairs equal: with titles or without.
        facts: what is in it.
    """

    corpus: Corpus
    match: Corpus
    facts: CorpusFacts


def read_pairs(
    source: str,
    query_column: str | None,
    document_column: str | None,
    negative_columns: list[str],
    positive_columns: Sequence[str] = (),
    config: str | None = None,
) -> OwnPairs:
    """Pairs from columns that are named, or go by a usual name; `config` as `open_pairs` has it.

    Raises:
        UserError: as `load_pairs`; a column is not named and has no usual name, or there are too few pairs.
    """
    if source == DOCSTRINGS:
        raise UserError("docstrings come with a retrieval task of their own; train with experiments/quickstart.yaml.")
    opened = open_pairs(source, config)
    names = opened.columns
    query = query_column or _usual(source, names, QUERY_COLUMNS, document_column, "queries", "--query-column")
    document = document_column or _usual(source, names, DOCUMENT_COLUMNS, query, "documents", "--document-column")
    pairs = load_pairs(source, query, document, negative_columns, positive_columns, config=config)
    if len(pairs) < MIN_PAIRS:
        raise UserError(
            f"{source}: {len(pairs)} pairs with text are too few to train and to test with; give at least {MIN_PAIRS}, "
            "better some thousands."
        )
    used = (query, document, *positive_columns, *negative_columns)
    unused = [name for name in names if name not in used]
    num_rows = len(opened.read(used))
    return OwnPairs(pairs, num_rows, query, document, negative_columns, positive_columns, unused, config)


def read_corpus(source: str, text_column: str | None, pairs: Pairs) -> OwnCorpus:
    """A corpus in which documents of pairs are looked up.

    Raises:
        UserError: as `open_corpus`; the column is not named and has no usual name, or ids are missing or repeated.
    """
    names = [] if is_task(source) else open_texts(source).columns
    column = text_column_of(source, names, text_column) if names else text_column or "text"
    corpus = open_corpus(source, column)
    facts = inspect_corpus(corpus, pairs)
    if corpus.untitled is not None and facts.found_share < 1:
        plain = open_corpus(source, column, titles=False)
        facts_of_plain = inspect_corpus(plain, pairs)
        if facts_of_plain.num_found > facts.num_found:
            return OwnCorpus(corpus, plain, facts_of_plain)
    return OwnCorpus(corpus, corpus, facts)


def text_column_of(source: str, columns: Sequence[str], named: str | None) -> str:
    """The column of a corpus's texts: the one that is named, or one that goes by a usual name.

    Raises:
        UserError: there is neither.
    """
    return named or _usual(source, columns, TEXT_COLUMNS, None, "texts", "--text-column")


def make_task(
    name: str,
    pairs: Pairs,
    corpus: OwnCorpus | None,
    queries: str | None,
    qrels: Path | None,
    num_queries: int | None,
    max_documents: int,
) -> HeldOut:
    """The retrieval task of test queries (a file, and a file of judgements), else of queries held out of the pairs.

    By default a tenth of the queries are held out, 500 at most; without a corpus, the pairs' documents are searched.

    Raises:
        UserError: one is given without the other, or what is given does not fit together.
    """
    if (queries is None) != (qrels is None):
        raise UserError("--queries and --qrels belong together: test queries, and which documents answer them.")
    if queries is not None and qrels is not None:
        if corpus is None:
            raise UserError("--queries and --qrels are about a corpus; give it with --corpus.")
        return given_test(pairs, corpus.corpus, load_corpus(queries), read_qrels(qrels), max_documents, name)
    num_queries = num_queries or min(500, max(1, round(len(np.unique(query_hashes(pairs))) / 10)))
    searched, match = (corpus.corpus, corpus.match) if corpus else (pairs_as_corpus(pairs), None)
    return hold_out(pairs, searched, num_queries, max_documents, name, match)


def _usual(source: str, names: Sequence[str], usual: Sequence[str], taken: str | None, what: str, option: str) -> str:
    found = [name for name in usual if name in names and name != taken]
    if not found:
        shown = ", ".join(shorten(name, _SHOWN, placeholder="...") for name in names)
        unnamed = option == "--query-column" and any(len(name) > _SHOWN for name in names)
        hint = " If these are texts, the file has no line of names: --pairs-config triples reads such triples."
        raise UserError(
            f"{source}: name the column of {what} with {option}; its columns are {shown}.{hint if unnamed else ''}"
        )
    return found[0]
