"""`python -m splade_lit.search`: search a corpus with a saved model, and see which terms made each score.

    python -m splade_lit.search --model runs/quickstart/model --corpus docstrings "fit a curve through points"
    python -m splade_lit.search --model runs/my_run/model --corpus docs.jsonl
    python -m splade_lit.search --model runs/my_run/model --vectors vectors    (made by python -m splade_lit.encode)
    python -m splade_lit.search --index docs.index "fit a curve through points" (made by python -m splade_lit.index)
    python -m splade_lit.search --index docs.index --queries-file queries.jsonl --run found.trec --top 1000
    python -m splade_lit.search --index docs.index --model runs/my_run/model --explain "fit a curve through points"

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
    from rich.padding import Padding
    from scipy.sparse import csr_array

    from splade_lit.encoder.explain import TermShare
    from splade_lit.encoder.model import AsymmetricSparseEncoder
    from splade_lit.encoder.query_side import QuerySide
    from splade_lit.engines.index import Index

_SNIPPET_CHARACTERS = 160
_TABLE_WIDTH = 80

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
    encoder = _encoder(settings) if settings.explain or not stored else None
    ids, documents = stored or (list(corpus), _encoded(encoder, list(corpus.values())))
    index = SearchIndex(documents)
    show = _Shows(queries, settings.terms, settings.explain, encoder)
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
    """Search an index; neither torch nor transformers is loaded, unless a model is to explain the hits."""
    names = ["corpus", "vectors", "limit", *([] if settings.explain else ["model", "revision", "device"])]
    if others := [f"--{name}" for name in names if getattr(settings, name) is not None]:
        raise UserError(f"An index has all of it; leave out {' and '.join(others)}.")
    if settings.explain and settings.run:
        raise UserError("--explain is of hits that are printed; leave out --run, or --explain.")
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
    encoder = _encoder(settings, index) if settings.model else None
    show, only = _Shows(queries, settings.terms, settings.explain, encoder), _only(settings)
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
    """Prints queries and their hits, with the terms that made each score; those that the model added in parentheses.

    To explain is to print a table of them, in which an encoder says what raised each.
    """

    def __init__(
        self, queries: "QuerySide", terms: int, explain: bool, encoder: "AsymmetricSparseEncoder | None"
    ) -> None:
        from rich.console import Console
        from rich.text import Text

        self._queries, self._terms, self._text = queries, terms, Text
        self._explain, self._encoder = explain, encoder if explain else None
        self._console = Console(highlight=False)
        if explain:  # a narrow screen folds lines better than columns
            self._console.width = max(self._console.width, _TABLE_WIDTH)

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
        if self._explain:
            self._console.print(self._table(terms), crop=False)
        else:
            self._console.print(self._text(f"      {self._line(terms)}", style="green"), soft_wrap=True)

    def _matching_terms(self, query: "csr_array", weights: "np.ndarray", text: str | None) -> "list[TermShare]":
        """The terms that query and document share, the largest share first; all together are the score."""
        from splade_lit.encoder.explain import term_shares

        read = self._queries.tokenisation.read_document(text).ids if text else None
        raised = self._encoder.raised_by(text, query.indices) if self._encoder and text else None
        found = term_shares(query, weights, self._queries.tokens(query.indices), read, raised)
        return [term for term in found if term.document_weight]

    def _line(self, terms: "list[TermShare]") -> str:
        parts = [f"{term.label} {term.share:.3f}" for term in terms[: self._terms]]
        if rest := terms[self._terms :]:
            parts.append(f"{len(rest)} more {sum(term.share for term in rest):.3f}")
        return " + ".join(parts)

    def _table(self, terms: "list[TermShare]") -> "Padding":
        from rich.padding import Padding
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", style="green")
        table.add_column("term", overflow="fold")
        for name in ("query", "document", "product"):
            table.add_column(name, justify="right", no_wrap=True)
        for name in ["where", *(["raised by"] if self._encoder else [])]:
            table.add_column(name, overflow="fold")
        where = {None: "", True: "in text", False: "added"}
        for term in terms[: self._terms]:
            figures = [f"{value:.3f}" for value in (term.query_weight, term.document_weight, term.share)]
            raised = [term.raised_by.token if term.raised_by else ""] if self._encoder else []
            table.add_row(*map(self._text, [term.token, *figures, where[term.in_text], *raised]))
        if rest := terms[self._terms :]:
            table.add_row(f"{len(rest)} more", "", "", f"{sum(term.share for term in rest):.3f}")
        return Padding(table, (0, 0, 0, 6))


def _queries(settings: "argparse.Namespace") -> Iterator[str]:
    from splade_lit.core.text import Mender

    mend = Mender()
    for query in map(mend, settings.queries or _typed_queries()):
        mend.report("queries")
        yield query


def _encoder(settings: "argparse.Namespace", index: "Index | None" = None) -> "AsymmetricSparseEncoder":
    """The model, which must be that of an index if one is given."""
    from splade_lit.command_line.devices import pick_device
    from splade_lit.encoder.layout import document_side_fingerprint, find_saved
    from splade_lit.encoder.model import AsymmetricSparseEncoder

    if index is not None:
        model = document_side_fingerprint(find_saved(settings.model, settings.revision))
        if index.model not in (None, model):
            raise UserError(f"{settings.index} was made with another model; give the same one, or leave out --model.")
    device = pick_device(settings.device)
    return AsymmetricSparseEncoder.load(settings.model, revision=settings.revision, device=device)


def _encoded(encoder: "AsymmetricSparseEncoder | None", texts: list[str]) -> "csr_array":
    assert encoder is not None, "there are no vectors"
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
    parser.add_argument(
        "--explain",
        action="store_true",
        help="show both weights of each term, whether it was added, and, with --model, which token raised it",
    )
    parser.add_shared("--device")
    return parser


if __name__ == "__main__":
    run_command(main)
