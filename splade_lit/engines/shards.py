"""Vectors of a corpus on disk, in shards that are written as they are made: memory does not grow with the corpus.

corpus.json       what made the vectors, and, once all are there, how many they are
shard-00000.npz   ids, a CSR matrix (int32 indices, float32 or float16 values), and a fingerprint of the documents
"""

import json
import logging
import math
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import xxhash
from scipy.sparse import csr_array, vstack

from splade_lit.core.errors import UserError, first_line
from splade_lit.core.progress import WorkProgress
from splade_lit.core.stores import Store, open_store
from splade_lit.core.text import parse_json
from splade_lit.encoder.layout import read_pruning
from splade_lit.encoder.pruning import Pruning

if TYPE_CHECKING:
    from splade_lit.data.corpus import Corpus
    from splade_lit.encoder.model import AsymmetricSparseEncoder

logger = logging.getLogger(__name__)

_HEADER = "corpus.json"
_SHARD = re.compile(r"shard-(\d+)\.npz")
# Documents that are tokenised and sorted by length together.
_CHUNK_DOCUMENTS = 2048


@dataclass(frozen=True)
class Header:
    """What the shards of a folder have in common.

    Attributes:
        model: fingerprint of the files that vectors depend on, see `document_side_fingerprint`.
        corpus: where the documents come from.
        vocab_size: dims of a vector.
        values: `float32` or `float16`.
        shard_documents: documents of each shard but the last.
        num_documents: all documents; None while they are being written.
        pruning: which weights were kept.
    """

    model: str
    corpus: str
    vocab_size: int
    values: str
    shard_documents: int
    num_documents: int | None = None
    pruning: Pruning = field(default_factory=Pruning)


@dataclass(frozen=True)
class Shard:
    """Documents that lie in one file: ids and texts."""

    number: int
    documents: list[tuple[str, str]]

    @property
    def name(self) -> str:
        """Of the file."""
        return f"shard-{self.number:05d}.npz"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids and texts."""
        return xxhash.xxh3_64_hexdigest(json.dumps(self.documents).encode())


MakeShards = Callable[[Iterator[Shard], Callable[[int], None]], None]
"""Makes and writes shards, in any order, and tells of documents that are done."""


def write_corpus_vectors(
    encoder: "AsymmetricSparseEncoder",
    corpus: "Corpus",
    folder: str | Path,
    model: str,
    *,
    values: str = "float32",
    shard_documents: int = 10_000,
    show_progress_bar: bool = False,
    make: MakeShards | None = None,
) -> Header:
    """Encode a corpus into a folder; a run that was interrupted goes on after the last whole shard.

    Shards that are there are compared with the corpus, so that documents which were added or changed since are encoded,
    and no others but those of their shards.

    Args:
        encoder: the model.
        corpus: the documents.
        folder: path or address (`Store`) of a new or empty folder, or of one that was begun with the same model, corpus
            and settings.
        model: fingerprint of the model's files (`document_side_fingerprint`).
        values: `float32` or `float16`, which halves the values' size and keeps 3 digits.
        shard_documents: documents of a shard.
        show_progress_bar: show a bar with documents/s (see `WorkProgress`).
        make: who makes the shards that are missing; if not given, this encoder, here.

    Raises:
        UserError: the folder holds something else, cannot be written, another process writes there, or the corpus has
            no text.
    """
    store = open_store(folder)
    pruning = encoder.pruning.of_documents
    header = Header(model, corpus.source, encoder.vocab_size, values, shard_documents, pruning=pruning)
    _check_folder(store, header)
    num_documents = 0

    def missing(progress: WorkProgress) -> Iterator[Shard]:
        nonlocal num_documents
        there = set(store.names())
        for number, documents in enumerate(_parts(_readable(corpus), shard_documents)):
            shard = Shard(number, documents)
            num_documents += len(documents)
            if shard.name in there and _shard_fingerprint(store, shard.name) == shard.fingerprint:
                progress.skip(len(documents))
                continue
            if shard.name in there:
                logger.info("%s/%s does not hold the corpus as it is now and is made again.", folder, shard.name)
            yield shard

    store.hold()
    try:
        _write_header(store, header)
        with WorkProgress("encoding", "documents", corpus.num_rows, show=show_progress_bar) as progress:
            if make is None:
                for shard in missing(progress):
                    store.write(shard.name, shard_bytes(encoder, shard, values, progress.advance))
            else:
                make(missing(progress), progress.advance)
        if num_documents == 0:
            raise UserError(f"{corpus.source}: no document has text.")
        names, expected = _shard_names(store), -(-num_documents // shard_documents)
        if [Shard(number, []).name for number in range(expected)] != names[:expected]:
            raise UserError(f"{folder} lacks shards; workers on other machines need an --output in reach of all.")
        for name in names[expected:]:
            store.remove(name)  # the corpus was longer once
        header = replace(header, num_documents=num_documents)
        _write_header(store, header)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{folder} cannot be written ({reason}); free space and start again.") from error
    finally:
        store.release()
    return header


def shard_bytes(
    encoder: "AsymmetricSparseEncoder", shard: Shard, values: str, done: Callable[[int], None] | None = None
) -> bytes:
    """The file of a shard, the same to the last bit whoever makes it; `done` is told of documents as they are made."""
    texts = ([text for _, text in chunk] for chunk in _parts(shard.documents, _CHUNK_DOCUMENTS))
    with ThreadPoolExecutor(1) as ahead:  # while the device has the chunk before
        tokenised = ahead.map(encoder.tokenisation.documents, texts)
        parts = [encoder.encode_document_tokens(one, on_batch=done or (lambda count: None)) for one in tokenised]
    vectors = csr_array(vstack(parts, format="csr"))
    ids = np.frombuffer(json.dumps([id for id, _ in shard.documents]).encode(), dtype=np.uint8)  # strings lose NULs
    data, indices = vectors.data.astype(values), vectors.indices.astype(np.int32)
    file = BytesIO()
    np.savez(file, fingerprint=shard.fingerprint, ids=ids, data=data, indices=indices, indptr=vectors.indptr)
    return file.getvalue()


def read_corpus_vectors(folder: str | Path, limit: int | None = None) -> tuple[list[str], csr_array, Header]:
    """Ids and vectors `[documents, vocab]` of a corpus: all, or the first `limit` ones, and no shard beyond is read.

    Raises:
        UserError: there is no such folder, or it holds no vectors, not all of them, or damaged ones.
    """
    header, parts = open_shards(folder)
    assert header.num_documents is not None, "open_shards has looked"
    wanted = min(limit or header.num_documents, header.num_documents)
    shards = list(islice(parts(), -(-wanted // header.shard_documents)))
    ids = [id for shard_ids, _ in shards for id in shard_ids][:limit]
    if len(ids) != wanted:
        raise UserError(f"{folder} holds {len(ids)} of {wanted} documents; encode the corpus again.")
    return ids, csr_array(vstack([vectors for _, vectors in shards], format="csr"))[:wanted], header


def open_shards(folder: str | Path) -> tuple[Header, Callable[[], Iterator[tuple[list[str], csr_array]]]]:
    """What the shards of a folder have in common, and a way to read ids and vectors shard by shard, again and again.

    Raises:
        UserError: as of `read_corpus_vectors`, of a damaged shard when it is read.
    """
    store = open_store(folder)
    if not _names(store):
        raise UserError(f"There is no folder {folder}; give one that python -m splade_lit.encode has written.")
    header = _read_header(store)
    if header is None or header.num_documents is None:
        raise UserError(f"{folder} does not hold the vectors of a whole corpus; run python -m splade_lit.encode again.")

    def read() -> Iterator[tuple[list[str], csr_array]]:
        found = 0
        for name in _shard_names(store):
            shard = _read_shard(store, name, header.vocab_size)
            found += len(shard[0])
            yield shard
        if found != header.num_documents:
            raise UserError(f"{folder} holds {found} of {header.num_documents} documents; encode the corpus again.")

    return header, read


def _check_folder(store: Store, header: Header) -> None:
    there = _read_header(store)
    if there is None:
        if Path(store.address).is_file() or _names(store):
            raise UserError(f"{store.address} is in use and holds no vectors; give a new or an empty folder.")
    elif replace(there, num_documents=None) != header:
        names = {"shard_documents": "size of shards", "values": "type of values", "vocab_size": "size of vocabulary"}
        mine, theirs = asdict(header), asdict(replace(there, num_documents=None))
        other = [names.get(name, name) for name in mine if mine[name] != theirs[name]]
        raise UserError(f"{store.address} holds vectors of another {' and '.join(other)}; give a new folder.")


def _write_header(store: Store, header: Header) -> None:
    store.write(_HEADER, (json.dumps(asdict(header), indent=2) + "\n").encode())


def _read_header(store: Store) -> Header | None:
    try:
        with store.open(_HEADER) as file:
            values = parse_json(file.read())
        header = Header(**values | {"pruning": read_pruning({"pruning": values.get("pruning")})})
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError, UserError):
        return None
    except OSError as error:
        raise UserError(f"{store.address} cannot be read ({error.strerror or error}); try again.") from error
    return header if _is_possible(header) else None


def _is_possible(header: Header) -> bool:
    """Whether the values of a header are ones that `write_corpus_vectors` writes."""
    counts = [header.shard_documents, 1 if header.num_documents is None else header.num_documents]
    sizes = [(header.vocab_size, np.iinfo(np.int32).max), *((count, sys.maxsize) for count in counts)]
    texts = (header.model, header.corpus)
    return (
        all(type(size) is int and 1 <= size <= most for size, most in sizes)
        and header.values in ("float32", "float16")
        and all(isinstance(text, str) for text in texts)
    )


def _names(store: Store) -> list[str]:
    try:
        return store.names()
    except OSError as error:
        raise UserError(f"{store.address} cannot be read ({error.strerror or error}); try again.") from error


def _shard_names(store: Store) -> list[str]:
    """In the order of their numbers, which may have more digits than others."""
    numbers = {int(match[1]): match[0] for name in _names(store) if (match := _SHARD.fullmatch(name))}
    return [numbers[number] for number in sorted(numbers)]


def _readable(corpus: "Corpus") -> Iterator[tuple[str, str]]:
    try:
        yield from corpus
    except OSError as error:
        raise UserError(f"{corpus.source} cannot be read ({error.strerror or error}); start again.") from error


def _parts(documents: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    remaining = iter(documents)
    return iter(lambda: list(islice(remaining, size)), [])


def _shard_fingerprint(store: Store, name: str) -> str | None:
    """What the documents of a shard were; None if it cannot be read. On disk all of it is read, against its checksums.

    At an address it is not: all shards would come over the network, from a place that has checksums of its own.
    """
    others = () if "://" in store.address else _ARRAYS
    try:
        with store.open(name) as file:
            return str(_arrays(file, "fingerprint", *others)[0])
    except _DAMAGE:
        return None


def _read_shard(store: Store, name: str, vocab_size: int) -> tuple[list[str], csr_array]:
    try:
        with store.open(name) as file:
            packed, data, indices, indptr = _arrays(file, *_ARRAYS)
        ids = parse_json(packed.tobytes())
        vectors = csr_array((data.astype(np.float32), indices, indptr), shape=(len(ids), vocab_size))
        vectors.check_format()
        if not all(isinstance(id, str) for id in ids):
            raise ValueError("ids are strings")
    except _DAMAGE as error:
        if "://" in store.address and isinstance(error, OSError | RuntimeError):
            raise UserError(f"{store.address}/{name} cannot be read ({first_line(error)}); try again.") from error
        raise UserError(f"{store.address}/{name} is damaged; remove it and encode the corpus again.") from error
    return ids, vectors


_ARRAYS = ("ids", "data", "indices", "indptr")
# A RuntimeError of a member that a flipped bit makes an encrypted one.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, TypeError, IndexError, BadZipFile, RuntimeError, zlib.error)


def _arrays(file: BinaryIO, *names: str) -> list[np.ndarray]:
    """Arrays of a file of `np.savez`; one of `_DAMAGE` where an array is not as large as it says, before it is made."""
    found = []
    with ZipFile(file) as archive:
        for name in names:
            entry = archive.getinfo(f"{name}.npy")
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                read_header = np.lib.format.read_array_header_1_0
                shape, _, dtype = (read_header if version == (1, 0) else np.lib.format.read_array_header_2_0)(member)
                size = math.prod(shape) * dtype.itemsize
                if dtype.hasobject or entry.compress_type != ZIP_STORED or size != entry.file_size - member.tell():
                    raise ValueError(f"{name} is not as large as it says")
                found.append(np.frombuffer(member.read(), dtype).reshape(shape))
    return found
