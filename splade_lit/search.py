"""`python -m splade_lit.search`: search a corpus with a saved model, and see which terms made each score.

    python -m splade_lit.search --model runs/quickstart/model --corpus docstrings "fit a curve through points"
    python -m splade_lit.search --model runs/my_run/model --corpus docs.jsonl
    python -m splade_lit.search --model runs/my_run/model --vectors vectors    (made by python -m splade_lit.encode)

Without a query on the command line, queries are read from standard input, a line each.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from splade_lit.command_line.arguments import CommandParser, positive_int
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError

if TYPE_CHECKING:
    import argparse

    from scipy.sparse import csr_array

    from splade_lit.encoder.query_side import QuerySide

_SNIPPET_CHARACTERS = 160

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Encode a corpus, or take its vectors, and print the hits of each query.

    Raises:
        UserError: there is no such model or corpus, or the vectors are another model's.
    """
    settings = _parser().parse_args(arguments)
    if settings.corpus is None and settings.vectors is None:
        raise UserError("Nothing to search: give --corpus, or --vectors made by python -m splade_lit.encode.")
    from rich.console import Console
    from rich.text import Text

    from splade_lit.core.text import Mender
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
    console = Console(highlight=False)
    mend = Mender()
    for query in map(mend, settings.queries or _typed_queries()):
        mend.report("queries")
        vector = queries.encode(query)
        top = index.search(vector, settings.top)
        console.print(Text(f"query: {query}", style="bold"), soft_wrap=True)
        ranking = zip(top.documents[0].tolist(), top.scores[0].tolist(), strict=True)
        hits = [(row, score) for row, score in ranking if score > 0]
        if not hits:
            console.print("  no document shares a term with it")
        for rank, (row, score) in enumerate(hits, start=1):
            console.print(Text(f"{rank:>3}. {score:7.3f}  {ids[row]}"), soft_wrap=True)
            if text := corpus.get(ids[row]):
                console.print(Text(f"      {_snippet(text)}", style="dim"), soft_wrap=True)
            terms = _matching_terms(queries, vector, documents[[row]], settings.terms)
            console.print(Text(f"      {terms}", style="green"), soft_wrap=True)


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


def _matching_terms(queries: "QuerySide", query: "csr_array", document: "csr_array", limit: int) -> str:
    """What each shared term adds to the score, the largest first; all together are the score."""
    shared = document.multiply(query).tocsr()
    order = (-shared.data).argsort(kind="stable")
    tokens = queries.tokens(shared.indices[order[:limit]])
    shares = shared.data[order]
    parts = [f"{token} {share:.3f}" for token, share in zip(tokens, shares[:limit], strict=True)]
    if len(shares) > limit:
        parts.append(f"{len(shares) - limit} more {shares[limit:].sum():.3f}")
    return " + ".join(parts)


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
    parser.add_shared("--model", "--revision", "--corpus", "--text-column")
    parser.add_argument("--vectors", help="folder of the corpus's vectors, so that nothing is encoded; see encode")
    parser.add_argument("--limit", type=positive_int, help="search the first documents only, for a quick look")
    parser.add_argument("--top", type=positive_int, default=10, help="hits a query (%(default)s)")
    parser.add_argument("--terms", type=positive_int, default=8, help="matching terms shown a hit (%(default)s)")
    parser.add_shared("--device")
    return parser


if __name__ == "__main__":
    run_command(main)
