"""`python -m splade_lit.index`: an index of a corpus, that is searched as soon as it is opened.

    python -m splade_lit.index --model runs/my_run/model --corpus docs.jsonl --output docs.index
    python -m splade_lit.index --model runs/my_run/model --vectors vectors --corpus docs.jsonl --output docs.index
    python -m splade_lit.search --index docs.index "fit a curve through points"

Vectors that `encode` has written are taken; a corpus alone is encoded first, and what is encoded stays beside the index
until that is whole, so that the same command goes on where it was stopped. With a corpus its texts are kept.
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

if TYPE_CHECKING:
    import argparse

    from scipy.sparse import csr_array

_VECTORS = ".vectors"


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the index, and print what is in it.

    Raises:
        UserError: there is no such model, corpus or folder of vectors, they do not belong together, or the output is
            in use.
    """
    settings = _parser().parse_args(arguments)
    if settings.corpus is None and settings.vectors is None:
        raise UserError("Nothing to index: give --corpus, --vectors made by python -m splade_lit.encode, or both.")
    check_writable(folder=settings.output)
    from splade_lit.encoder.layout import copy_query_side, document_side_fingerprint, find_saved
    from splade_lit.engines.exact import ExactIndex
    from splade_lit.engines.shards import open_shards

    ExactIndex.check_folder(settings.output)
    fingerprint = document_side_fingerprint(find_saved(settings.model, settings.revision))
    header, shards = open_shards(settings.vectors or _encode(settings, fingerprint))
    if header.model != fingerprint:
        raise UserError(
            f"The vectors in {settings.vectors} are those of another model; encode the corpus with this one."
        )

    def parts() -> "Iterator[tuple[Sequence[str], csr_array, list[str] | None]]":
        documents = _texts(settings) if settings.corpus else None
        for ids, vectors in shards():
            texts = None if documents is None else _texts_of(ids, documents, settings)
            yield ids, vectors, texts
        if documents is not None and next(documents, None) is not None:
            raise UserError(f"{settings.corpus} has more documents than the vectors; encode it again.")

    def copy_query(folder: Path) -> None:
        copy_query_side(settings.model, folder, settings.revision)

    index = ExactIndex.build(settings.output, parts, header.vocab_size, copy_query, model=fingerprint)
    shutil.rmtree(settings.output / _VECTORS, ignore_errors=True)
    stats = index.stats()
    per_document = (stats.num_postings or 0) / max(stats.num_documents, 1)
    size = f"{per_document:.1f} active dims a document, {stats.num_bytes:,} bytes"
    print(f"index: {settings.output}  documents {stats.num_documents:,}  {size}")


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
        "index", "Build an index of a corpus, to be searched by python -m splade_lit.search --index."
    )
    parser.add_shared("--model", "--revision", "--corpus", "--text-column")
    parser.add_argument("--vectors", help="folder or address that python -m splade_lit.encode has written to")
    parser.add_argument("--output", type=Path, required=True, help="folder for the index")
    parser.add_shared("--device")
    return parser


if __name__ == "__main__":
    run_command(main)
