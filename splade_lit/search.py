"""`python -m splade_lit.search`: search a corpus with a saved model, and see which terms made each score.

    python -m splade_lit.search --model runs/quickstart/model --corpus docstrings "fit a curve through points"
    python -m splade_lit.search --model runs/my_run/model --corpus docs.jsonl
    python -m splade_lit.search --model runs/my_run/model --vectors vectors    (made by python -m splade_lit.encode)
    python -m splade_lit.search --index docs.index "fit a curve through points" (made by python -m splade_lit.index)
    python -m splade_lit.search --index docs.index --queries-file queries.jsonl --run found.trec --top 1000

Without a query on the command line, queries are read from standard input, a line each.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splade_lit.command_line.arguments import CommandParser, positive_int
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError

if TYPE_CHECKING:
    import argparse

    import numpy as np
    from scipy.sparse import csr_array

    from splade_lit.encoder.query_side import QuerySide
    from splade_lit.engines.index import Index

_SNIPPET_CHARACTERS = 160

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Encode a corpus, or take its vectors, and print the hits of each query.

    Raises:
        UserError: there is no such model or corpus, or the vectors are another model's.
    """
    settings = _parser().parse_args(arguments)
    if settings.index is not None:
        _search_index(settings)
        return
    if settings.run or settings.queries_file or settings.only:
        given = "--queries-file, --run and --only go with --index"
        raise UserError(f"{given}; build one with python -m splade_lit.index.")
    if settings.model is None:
        raise UserError("Nothing to search with: give --model, or --index made by python -m splade_lit.index.")
    if settings.corpus is None and settings.vectors is None:
        raise UserError("Nothing to search: give --corpus, or --vectors made by python -m splade_lit.encode.")
    from splade_lit.encoder.query_side import load_query_side
    from splade_lit.evaluation.exact_search import SearchIndex

    stored = _stored_vectors(settings) if settings.vectors else None
    corpus: dict[str, str] = {}
    if settings.corpus:  # reading texts loads large libraries, which vectors alone do not need
        from splade_lit.data.corpus import load_corpus

        corpus = load_corpus(settings.corpus, settings.text_column, limit=settings.limit)
    queries = load_query_side(settings.model, revision=settings.revision)
    ids, documents = stored or (list(corpus), _encoded(settings, list(corpus.values())))
    index = SearchIndex(documents)
    show = _Shows(queries, settings.terms)
    for query in _queries(settings):
        vector = queries.encode(query)
        top = index.search(vector, settings.top)
        ranking = zip(top.documents[0].tolist(), top.scores[0].tolist(), strict=True)
        hits = [(row, score) for row, score in ranking if score > 0]
        show.query(query, len(hits))
        for rank, (row, score) in enumerate(hits, start=1):
            weights = documents[[row]].toarray()[0][vector.indices]
            show.hit(rank, score, ids[row], corpus.get(ids[row]), vector, weights)


def _search_index(settings: "argparse.Namespace") -> None:
    """Search an index; neither torch nor transformers is loaded."""
    given = {
        f"--{name}": getattr(settings, name) for name in ("model", "revision", "corpus", "vectors", "limit", "device")
    }
    if others := [name for name, value in given.items() if value is not None]:
        raise UserError(f"An index has all of it; leave out {' and '.join(others)}.")
    if settings.queries and settings.queries_file:
        raise UserError("Queries are given, and a file of queries, too; leave out one of them.")
    import numpy as np

    from splade_lit.core.queries import read_queries
    from splade_lit.encoder.query_side import load_query_side
    from splade_lit.engines.open_index import open_index

    index = open_index(settings.index)
    if index.query_folder is None:
        raise UserError(f"{settings.index} has no query side; build it with python -m splade_lit.index.")
    queries = load_query_side(index.query_folder)
    if settings.run:
        _write_run(settings, index, queries)
        return
    show, only = _Shows(queries, settings.terms), _only(settings)
    texts = (text for _, text in read_queries(settings.queries_file)) if settings.queries_file else _queries(settings)
    for query in texts:
        vector = queries.encode(query)
        (hits,) = index.search(vector, settings.top, only)
        show.query(query, len(hits))
        for rank, hit in enumerate(hits, start=1):
            weights = np.array(index.weights(hit.id, vector.indices.tolist()), np.float32)
            show.hit(rank, hit.score, hit.id, index.text(hit.id), vector, weights)
    index.close()


def _only(settings: "argparse.Namespace") -> list[str] | None:
    """The ids that may be found, all if None."""
    if settings.only is None:
        return None
    from splade_lit.core.text import text_lines

    return [line for _, line in text_lines(settings.only)]


def _write_run(settings: "argparse.Namespace", index: "Index", queries: "QuerySide") -> None:
    """Write the hits of many queries as a TREC run."""
    from splade_lit.core.files import check_writable, replace_text
    from splade_lit.core.queries import read_queries
    from splade_lit.core.text import check_trec_ids, trec_run_text

    if settings.queries_file is None:
        raise UserError("--run is of many queries: give --queries-file, too.")
    check_writable(settings.run)
    asked = list(read_queries(settings.queries_file))
    check_trec_ids(id for id, _ in asked)
    found = index.search(queries.encode([text for _, text in asked]), settings.top, _only(settings))
    run = {id: dict(hits) for (id, _), hits in zip(asked, found, strict=True)}
    if len(run) < len(asked):
        raise UserError(f"{settings.queries_file}: two queries have one id; make ids unique.")
    check_trec_ids(id for hits in run.values() for id in hits)
    replace_text(settings.run, trec_run_text(run))
    print(f"run: {settings.run}  queries {len(run):,}  hits {sum(map(len, run.values())):,}")


class _Shows:
    """Prints queries and their hits, with the terms that made each score; those that the model added in parentheses."""

    def __init__(self, queries: "QuerySide", terms: int) -> None:
        from rich.console import Console
        from rich.text import Text

        self._queries, self._terms, self._text = queries, terms, Text
        self._console = Console(highlight=False)

    def query(self, text: str, num_hits: int) -> None:
        self._console.print(self._text(f"query: {text}", style="bold"), soft_wrap=True)
        if not num_hits:
            self._console.print("  no document shares a term with it")

    def hit(
        self, rank: int, score: float, id: str, text: str | None, query: "csr_array", weights: "np.ndarray"
    ) -> None:
        """A hit; `weights` are the document's in the dims of the query."""
        self._console.print(self._text(f"{rank:>3}. {score:7.3f}  {id}"), soft_wrap=True)
        if text:
            self._console.print(self._text(f"      {_snippet(text)}", style="dim"), soft_wrap=True)
        terms = self._matching_terms(query, weights, text)
        self._console.print(self._text(f"      {terms}", style="green"), soft_wrap=True)

    def _matching_terms(self, query: "csr_array", weights: "np.ndarray", text: str | None) -> str:
        """What each shared term adds to the score, the largest first; all together are the score."""
        from splade_lit.encoder.explain import term_shares

        read = self._queries.tokenisation.read_document(text).ids if text else None
        found = term_shares(query, weights, self._queries.tokens(query.indices), read)
        terms = [term for term in found if term.document_weight]
        parts = [f"{term.label} {term.share:.3f}" for term in terms[: self._terms]]
        if rest := terms[self._terms :]:
            parts.append(f"{len(rest)} more {sum(term.share for term in rest):.3f}")
        return " + ".join(parts)


def _queries(settings: "argparse.Namespace") -> Iterator[str]:
    from splade_lit.core.text import Mender

    mend = Mender()
    for query in map(mend, settings.queries or _typed_queries()):
        mend.report("queries")
        yield query


def _encoded(settings: "argparse.Namespace", texts: list[str]) -> "csr_array":
    from splade_lit.command_line.devices import pick_device
    from splade_lit.encoder.model import AsymmetricSparseEncoder

    device = pick_device(settings.device)
    encoder = AsymmetricSparseEncoder.load(settings.model, revision=settings.revision, device=device)
    return encoder.encode_document(texts, show_progress_bar=True, convert_to_csr=True)


def _stored_vectors(settings: "argparse.Namespace") -> "tuple[list[str], csr_array]":
    """Ids and vectors, which are known to be this model's."""
    from splade_lit.encoder.layout import document_side_fingerprint, find_saved
    from splade_lit.engines.shards import read_corpus_vectors

    ids, documents, header = read_corpus_vectors(settings.vectors, settings.limit)
    layout = find_saved(settings.model, settings.revision)
    if header.model != document_side_fingerprint(layout):
        raise UserError(
            f"The vectors in {settings.vectors} are those of another model; encode the corpus with this one."
        )
    kept, model_keeps = header.pruning.documents_keep, layout.pruning.documents_keep
    if kept != model_keeps:
        logger.warning("Kept of a document in these vectors: %s; as the model has it: %s.", kept, model_keeps)
    return ids, documents


def _snippet(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SNIPPET_CHARACTERS else f"{text[:_SNIPPET_CHARACTERS].rsplit(' ', 1)[0]} ..."


def _typed_queries() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            print("query> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _parser() -> CommandParser:
    parser = CommandParser(
        "search", "Search a corpus with a saved model; each hit comes with the terms that made its score."
    )
    parser.add_argument("queries", nargs="*", help="what to search for (default: read from standard input)")
    parser.add_argument("--index", help="index to search, which has model and texts; see index")
    parser.add_shared("--model", required=False)
    parser.add_shared("--revision", "--corpus", "--text-column")
    parser.add_argument(
        "--queries-file", type=Path, help="queries for an index: jsonl with _id and text, or id, tab, text"
    )
    parser.add_argument(
        "--run", type=Path, help="file for the hits of these queries as a TREC run, in place of printing"
    )
    parser.add_argument(
        "--only", type=Path, metavar="FILE", help="find documents of an index among those of a file of ids, a line each"
    )
    parser.add_argument("--vectors", help="folder of the corpus's vectors, so that nothing is encoded; see encode")
    parser.add_argument("--limit", type=positive_int, help="search the first documents only, for a quick look")
    parser.add_argument("--top", type=positive_int, default=10, help="hits a query (%(default)s)")
    parser.add_argument("--terms", type=positive_int, default=8, help="matching terms shown a hit (%(default)s)")
    parser.add_shared("--device")
    return parser


if __name__ == "__main__":
    run_command(main)
