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

import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from splade_lit.command_line.arguments import CommandParser
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_writable
from splade_lit.engines.names import ENGINES, SERVERS, engine_class

if TYPE_CHECKING:
    import argparse

    from splade_lit.engines.index import Index, Parts, Server

_VECTORS = ".vectors"
_BUILDS = ("engine", "url", "name", "tasks")


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
    engine.check_folder(settings.output)
    tasks = load_tasks(settings.tasks, settings.nanobeir_source, settings.nanobeir_revision)

    def copy_query(folder: Path) -> None:
        copy_query_side(settings.model, folder, settings.revision)

    vocab_size, parts = _parts(settings, fingerprint)
    index = engine.build(settings.output, parts, vocab_size, copy_query, model=fingerprint, server=server)
    if tasks:
        from splade_lit.encoder.query_side import load_query_side
        from splade_lit.engines.quality import engine_quality

        queries = load_query_side(settings.model, revision=settings.revision)
        for task in tasks:
            found = engine_quality(index, parts, task, queries)
            change = found.through_index - found.exact
            print(f"{task.name} nDCG@10: {found.through_index:.4f}, exact {found.exact:.4f} ({change:+.4f})")
    shutil.rmtree(settings.output / _VECTORS, ignore_errors=True)
    _print_stats(settings.output, index)
    index.close()


def _add(settings: "argparse.Namespace", fingerprint: str) -> None:
    index = _open(settings)
    if index.model not in (None, fingerprint):
        raise UserError(f"{settings.output} was made with another model; add documents with the same one.")
    _, parts = _parts(settings, fingerprint)
    for ids, vectors, texts in parts():
        index.add(ids, vectors, texts)
    shutil.rmtree(settings.output / _VECTORS, ignore_errors=True)
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
    print(f"deleted: {count:,} of {len(asked):,} documents; the others were not there")
    _print_stats(settings.output, index)
    index.close()


def _open(settings: "argparse.Namespace") -> "Index":
    from splade_lit.engines.open_index import open_index

    if given := [f"--{name}" for name in _BUILDS if getattr(settings, name)]:
        raise UserError(f"An index that is there says {' and '.join(given)} itself; leave them out.")
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


def _parts(settings: "argparse.Namespace", fingerprint: str) -> "tuple[int, Parts]":
    """Dims, and the documents, encoded first where there are no vectors."""
    from splade_lit.engines.shards import open_shards

    header, shards = open_shards(settings.vectors or _encode(settings, fingerprint))
    if header.model != fingerprint:
        raise UserError(
            f"The vectors in {settings.vectors} are those of another model; encode the corpus with this one."
        )

    def parts() -> "Iterator[tuple]":
        documents = _texts(settings) if settings.corpus else None
        for ids, vectors in shards():
            yield ids, vectors, None if documents is None else _texts_of(ids, documents, settings)
        if documents is not None and next(documents, None) is not None:
            raise UserError(f"{settings.corpus} has more documents than the vectors; encode it again.")

    return header.vocab_size, parts


def _encode(settings: "argparse.Namespace", fingerprint: str) -> Path:
    """Encode the corpus, or what is missing of it; the folder of its shards."""
    from splade_lit.command_line.devices import pick_device
    from splade_lit.data.corpus import open_corpus
    from splade_lit.encoder.model import AsymmetricSparseEncoder
    from splade_lit.engines.shards import write_corpus_vectors

    device = pick_device(settings.device)
    corpus = open_corpus(settings.corpus, settings.text_column)
    encoder = AsymmetricSparseEncoder.load(settings.model, revision=settings.revision, device=device)
    folder = settings.output / _VECTORS
    write_corpus_vectors(encoder, corpus, folder, fingerprint, show_progress_bar=True)
    return folder


def _texts(settings: "argparse.Namespace") -> Iterator[tuple[str, str]]:
    from splade_lit.data.corpus import open_corpus

    return iter(open_corpus(settings.corpus, settings.text_column))


def _texts_of(ids: Sequence[str], documents: Iterator[tuple[str, str]], settings: "argparse.Namespace") -> list[str]:
    """The texts of the next documents, which must be those of the vectors."""
    there = list(islice(documents, len(ids)))
    if [id for id, _ in there] != list(ids):
        raise UserError(f"The vectors in {settings.vectors} are not those of {settings.corpus}; encode it again.")
    return [text for _, text in there]


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
