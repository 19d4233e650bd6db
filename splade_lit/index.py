"""`python -m splade_lit.index`: an index of a corpus, that is searched as soon as it is opened.

    python -m splade_lit.index --model runs/my_run/model --corpus docs.jsonl --output docs.index
    python -m splade_lit.index --model runs/my_run/model --vectors vectors --corpus docs.jsonl --output docs.index
    python -m splade_lit.index --model runs/my_run/model --corpus more.jsonl --add --output docs.index
    python -m splade_lit.index --delete d1 d2 --output docs.index
    python -m splade_lit.search --index docs.index "fit a curve through points"

Vectors that `encode` has written are taken; a corpus alone is encoded first, and what is encoded stays beside the index
until that is whole, so that the same command goes on where it was stopped. With a corpus its texts are kept.
`--engine` says who searches, `--url` on which server; `docs/engines.md` has them side by side.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from splade_lit.command_line.arguments import CommandParser
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_writable, hold_folder
from splade_lit.engines.names import ENGINES, SERVERS, engine_class

if TYPE_CHECKING:
    import argparse

    from splade_lit.engines.documents import Documents
    from splade_lit.engines.index import Index, Server

_VECTORS = ".vectors"
_BUILDS = ("engine", "url", "name")

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the index or change it, and print what is in it.

    Raises:
        UserError: there is no such model, corpus or folder of vectors, they do not belong together, the output is in
            use, or a server does not answer.
    """
    settings = _parser().parse_args(arguments)
    if settings.delete or settings.delete_file:
        _delete(settings)
        return
    if settings.model is None:
        raise UserError("Nothing to index with: give --model, the folder of a saved model or its Hub id.")
    if settings.corpus is None and settings.vectors is None:
        raise UserError("Nothing to index: give --corpus, --vectors made by python -m splade_lit.encode, or both.")
    check_writable(folder=settings.output)
    from splade_lit.encoder.layout import document_side_fingerprint, find_saved

    fingerprint = document_side_fingerprint(find_saved(settings.model, settings.revision))
    if settings.add:
        _add(settings, fingerprint)
    else:
        _build(settings, fingerprint)


def _build(settings: "argparse.Namespace", fingerprint: str) -> None:
    from splade_lit.data.tasks import load_tasks
    from splade_lit.encoder.layout import copy_query_side

    engine = engine_class(settings.engine or "exact")
    server = _server(settings)
    engine.check(settings.output, server)
    tasks = load_tasks(settings.tasks, settings.nanobeir_source, settings.nanobeir_revision)
    if tasks and settings.corpus:
        from splade_lit.engines.documents import CorpusSource
        from splade_lit.engines.quality import check_corpus

        check_corpus(tasks, (id for id, _ in CorpusSource(settings.corpus, settings.text_column).open()))

    def copy_query(folder: Path) -> None:
        copy_query_side(settings.model, folder, settings.revision)

    with _documents(settings, fingerprint) as documents:
        parts, size = documents.parts, documents.vocab_size
        with _losses_told() as told:
            index = engine.build(settings.output, parts, size, copy_query, model=fingerprint, server=server)
        if told and not tasks:
            logger.warning("What rounded weights cost in nDCG@10 was not measured; give --tasks to know.")
        if tasks:
            from splade_lit.encoder.query_side import load_query_side
            from splade_lit.engines.quality import engine_quality

            queries = load_query_side(settings.model, revision=settings.revision)
            for task in tasks:
                found = engine_quality(index, parts, task, queries)
                change = found.through_index - found.exact
                print(f"{task.name} nDCG@10: {found.through_index:.4f}, exact {found.exact:.4f} ({change:+.4f})")
    _print_stats(settings.output, index)
    index.close()


def _add(settings: "argparse.Namespace", fingerprint: str) -> None:
    index = _open(settings)
    if index.model not in (None, fingerprint):
        raise UserError(f"{settings.output} was made with another model; add documents with the same one.")
    index.delete([])  # engines that cannot change an index say so, before anything is encoded
    with _documents(settings, fingerprint) as documents:
        for ids, vectors, texts in documents.parts():
            index.add(ids, vectors, texts)
    _print_stats(settings.output, index)
    index.close()


def _delete(settings: "argparse.Namespace") -> None:
    if settings.model or settings.corpus or settings.vectors or settings.add:
        raise UserError("--delete takes ids and --output alone; leave out --model, --corpus, --vectors and --add.")
    from splade_lit.core.text import text_lines

    ids = list(settings.delete or ())
    if settings.delete_file:
        ids += [line for _, line in text_lines(settings.delete_file)]
    index = _open(settings)
    asked = set(ids)
    count = index.delete(asked)
    others = "; the others were not there" if count < len(asked) else ""
    print(f"deleted: {count:,} of {len(asked):,} documents{others}")
    _print_stats(settings.output, index)
    index.close()


def _open(settings: "argparse.Namespace") -> "Index":
    from splade_lit.engines.open_index import open_index

    if given := [f"--{name}" for name in _BUILDS if getattr(settings, name)]:
        raise UserError(f"An index that is there says {' and '.join(given)} itself; leave them out.")
    if settings.tasks:
        raise UserError("--tasks measure an index as it is built; leave them out where one is changed.")
    return open_index(settings.output)


def _server(settings: "argparse.Namespace") -> "Server | None":
    if settings.url is None:
        if settings.name is not None:
            raise UserError("--name is that on a server; give its address with --url, too.")
        return None
    if settings.engine not in SERVERS:
        raise UserError(f"--url is the address of a server; give --engine {', '.join(SERVERS)} with it.")
    from splade_lit.engines.index import Server, default_name

    return Server(settings.url, settings.name or default_name(settings.output))


def _print_stats(folder: Path, index: "Index") -> None:
    stats, said = index.stats(), []
    if stats.num_postings is not None:
        said.append(f"{stats.num_postings / max(stats.num_documents, 1):.1f} active dims a document")
    if stats.num_bytes is not None:
        said.append(f"{stats.num_bytes:,} bytes")
    print(f"index: {folder}  documents {stats.num_documents:,}  {', '.join(said)}".rstrip())


@contextmanager
def _losses_told() -> Iterator[list[logging.LogRecord]]:
    """The warnings of an engine that weights did not fit it, as they come."""
    told: list[logging.LogRecord] = []

    def hear(record: logging.LogRecord) -> bool:
        told.append(record)
        return True

    of_limits = logging.getLogger("splade_lit.engines.limits")
    of_limits.addFilter(hear)
    try:
        yield told
    finally:
        of_limits.removeFilter(hear)


@contextmanager
def _documents(settings: "argparse.Namespace", fingerprint: str) -> "Iterator[Documents]":
    """The documents, encoded first where there are no vectors; what was encoded goes away once the index is whole."""
    from splade_lit.engines.documents import CorpusSource, encoded_documents, stored_documents

    corpus = CorpusSource(settings.corpus, settings.text_column) if settings.corpus else None
    if settings.vectors is not None or corpus is None:
        yield stored_documents(settings.vectors, fingerprint, corpus)
        _remove_left(settings.output)
        return
    # Of this corpus: what a build of another one has left when it was stopped is not taken for it.
    of_corpus = f"{settings.corpus} {settings.text_column} {fingerprint}"
    scratch = settings.output / f"{_VECTORS}_{xxhash.xxh3_64_hexdigest(of_corpus.encode())}"
    documents = encoded_documents(settings.model, settings.revision, settings.device, corpus, fingerprint, scratch)
    held = hold_folder(scratch)
    try:
        yield documents
        shutil.rmtree(scratch, ignore_errors=True)
    finally:
        held.release()
    _remove_left(settings.output)


def _remove_left(folder: Path) -> None:
    """Remove what others have encoded that were stopped, and not what another process is at."""
    for path in folder.glob(f"{_VECTORS}_*"):
        with suppress(UserError):
            held = hold_folder(path)
            if held.is_locked:
                shutil.rmtree(path, ignore_errors=True)
            held.release()


def _parser() -> CommandParser:
    parser = CommandParser(
        "index", "Build an index of a corpus, to be searched by python -m splade_lit.search --index, or change one."
    )
    parser.add_shared("--model", required=False)
    parser.add_shared("--revision", "--corpus", "--text-column")
    parser.add_argument("--vectors", help="folder or address that python -m splade_lit.encode has written to")
    parser.add_argument("--output", type=Path, required=True, help="folder of the index")
    parser.add_argument("--engine", choices=list(ENGINES), help="who searches (default: exact)")
    parser.add_argument("--url", help=f"address of a server, for {', '.join(SERVERS)}; without passwords or keys")
    parser.add_argument("--name", help="name of the collection or table there (default: that of the folder)")
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--add",
        action="store_true",
        help="add the corpus to the index that is there, or put it in place of what has its ids",
    )
    change.add_argument("--delete", nargs="+", metavar="ID", help="delete documents of the index that is there")
    change.add_argument("--delete-file", type=Path, metavar="FILE", help="delete those of a file of ids, a line each")
    parser.add_argument("--tasks", nargs="+", default=[], help="tasks of this corpus to measure what the engine costs")
    parser.add_shared("--nanobeir-source", "--nanobeir-revision", "--device")
    return parser


if __name__ == "__main__":
    run_command(main)
