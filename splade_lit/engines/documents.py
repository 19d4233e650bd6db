"""Documents that are put into an engine or written for one: encoded first, or from vectors that are there already."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from splade_lit.core.errors import UserError
from splade_lit.engines.index import Part, Parts
from splade_lit.engines.shards import open_shards, write_corpus_vectors

if TYPE_CHECKING:
    from splade_lit.data.corpus import Corpus
    from splade_lit.engines.exact import ExactIndex


@dataclass(frozen=True)
class Documents:
    """Documents with their vectors.

    Attributes:
        vocab_size: dims of a vector.
        num_documents: how many they are.
        parts: gives ids, vectors, and texts where there are some.
    """

    vocab_size: int
    num_documents: int
    parts: Parts


@dataclass(frozen=True)
class CorpusSource:
    """A corpus as `open_corpus` takes it."""

    source: str
    text_column: str

    def open(self) -> "Corpus":
        """The documents; a UserError is that of `open_corpus`."""
        from splade_lit.data.corpus import open_corpus  # here: it loads large libraries

        return open_corpus(self.source, self.text_column)


def stored_documents(vectors: str | Path, model: str, corpus: CorpusSource | None = None) -> Documents:
    """Documents whose vectors `encode` has written, with the texts of a corpus if it is given.

    Args:
        vectors: folder or address of the shards.
        model: fingerprint of the model that must have made them, see `document_side_fingerprint`.
        corpus: the same documents.

    Raises:
        UserError: there are no such vectors, they are another model's, or those of other documents than the corpus has.
    """
    header, shards = open_shards(vectors)
    if header.model != model:
        raise UserError(f"The vectors in {vectors} are those of another model; encode the corpus with this one.")

    def parts() -> Iterator[Part]:
        documents = iter(corpus.open()) if corpus else None
        for ids, rows in shards():
            yield ids, rows, None if documents is None else _texts_of(ids, documents, vectors, corpus)
        if corpus and documents is not None and next(documents, None) is not None:
            raise UserError(f"{corpus.source} has more documents than the vectors; encode it again.")

    assert header.num_documents is not None, "open_shards has looked"
    return Documents(header.vocab_size, header.num_documents, parts)


def encoded_documents(
    source: str,
    revision: str | None,
    device: str | None,
    corpus: CorpusSource,
    model: str,
    scratch: Path,
    limits: Mapping[str, Any] = MappingProxyType({}),
) -> Documents:
    """Documents of a corpus that is encoded first, or what is missing of it since a run that was stopped.

    Args:
        source: folder or Hub id of the model.
        revision: branch, tag or commit of it on the Hub.
        device: where it runs.
        corpus: the documents.
        model: fingerprint of the model.
        scratch: folder for the vectors, which stay there.
        limits: those of the model that are changed, by their names, as of `Pruning.changed`.

    Raises:
        UserError: there is no such model, corpus or device, or the folder cannot be written.
    """
    from splade_lit.command_line.devices import pick_device
    from splade_lit.encoder.model import AsymmetricSparseEncoder

    place = pick_device(device)
    opened = corpus.open()
    encoder = AsymmetricSparseEncoder.load(source, revision=revision, device=place)
    encoder.pruning = encoder.pruning.changed(limits)
    write_corpus_vectors(encoder, opened, scratch, model, show_progress_bar=True)
    return stored_documents(scratch, model, corpus)


def indexed_documents(index: "ExactIndex") -> Documents:
    """Documents of an exact index; a part is what was added together, and is held in memory whole."""
    return Documents(index.vocab_size, index.stats().num_documents, index.documents)


def _texts_of(
    ids: Sequence[str], documents: Iterator[tuple[str, str]], vectors: str | Path, corpus: CorpusSource | None
) -> list[str]:
    """The texts of the next documents, which must be those of the vectors."""
    there = list(islice(documents, len(ids)))
    if [id for id, _ in there] != list(ids):
        source = corpus.source if corpus else ""
        raise UserError(f"The vectors in {vectors} are not those of {source}; encode it again.")
    return [text for _, text in there]
