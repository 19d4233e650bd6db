"""Vectors of a corpus on disk, in shards that are written as they are made: memory does not grow with the corpus.

corpus.json       what made the vectors, and, once all are there, how many they are
shard-00000.npz   ids, a CSR matrix (int32 indices, float32 or float16 values), and a fingerprint of the documents
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
import xxhash
from scipy.sparse import csr_array, vstack

from splade_lit.core.errors import UserError
from splade_lit.core.files import LOCK, hold_folder, replace_text, whole_file
from splade_lit.core.progress import WorkProgress
from splade_lit.encoder.pruning import Pruning

if TYPE_CHECKING:
    from splade_lit.data.corpus import Corpus
    from splade_lit.encoder.model import AsymmetricSparseEncoder

logger = logging.getLogger(__name__)

_HEADER = "corpus.json"
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


def write_corpus_vectors(
    encoder: "AsymmetricSparseEncoder",
    corpus: "Corpus",
    folder: str | Path,
    model: str,
    *,
    values: str = "float32",
    shard_documents: int = 10_000,
    show_progress_bar: bool = False,
) -> Header:
    """Encode a corpus into a folder; a run that was interrupted goes on after the last whole shard.

    Shards that are there are compared with the corpus, so that documents which were added or changed since are encoded,
    and no others but those of their shards.

    Args:
        encoder: the model.
        corpus: the documents.
        folder: a new or empty folder, or one that was begun with the same model, corpus and settings.
        model: fingerprint of the model's files (`document_side_fingerprint`).
        values: `float32` or `float16`, which halves the values' size and keeps 3 digits.
        shard_documents: documents of a shard.
        show_progress_bar: show a bar with documents/s (see `WorkProgress`).

    Raises:
        UserError: the folder holds something else, cannot be written, or the corpus has no text.
    """
    folder = Path(folder)
    pruning = encoder.pruning.of_documents
    header = Header(model, corpus.source, encoder.vocab_size, values, shard_documents, pruning=pruning)
    _check_folder(folder, header)
    num_documents = 0
    held = hold_folder(folder)
    try:
        _write_header(folder, header)
        with WorkProgress("encoding", "documents", corpus.num_rows, show=show_progress_bar) as progress:
            for number, shard in enumerate(_parts(corpus, shard_documents)):
                path = folder / f"shard-{number:05d}.npz"
                num_documents += len(shard)
                fingerprint = xxhash.xxh3_64_hexdigest(json.dumps(shard).encode())
                if path.exists():
                    if _shard_fingerprint(path) == fingerprint:
                        progress.skip(len(shard))
                        continue
                    logger.info("%s does not hold the corpus as it is now and is made again.", path)
                parts = []
                for chunk in _parts(shard, _CHUNK_DOCUMENTS):
                    token_ids = encoder.tokenisation.documents([text for _, text in chunk])
                    parts.append(encoder.encode_document_tokens(token_ids, on_batch=progress.advance))
                vectors = csr_array(vstack(parts, format="csr"))
                _write_shard(path, [id for id, _ in shard], vectors, values, fingerprint)
        if num_documents == 0:
            raise UserError(f"{corpus.source}: no document has text.")
        for path in sorted(folder.glob("shard-*.npz"))[-(-num_documents // shard_documents) :]:
            path.unlink()  # the corpus was longer once
        header = replace(header, num_documents=num_documents)
        _write_header(folder, header)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); free space and start again.") from error
    finally:
        held.release()
    return header


def read_corpus_vectors(folder: str | Path, limit: int | None = None) -> tuple[list[str], csr_array, Header]:
    """Ids and vectors `[documents, vocab]` of a corpus: all, or the first `limit` ones, and no shard beyond is read.

    Raises:
        UserError: there is no such folder, or it holds no vectors, not all of them, or damaged ones.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give one that python -m splade_lit.encode has written.")
    header = _read_header(folder)
    if header is None or header.num_documents is None:
        raise UserError(f"{folder} does not hold the vectors of a whole corpus; run python -m splade_lit.encode again.")
    wanted = min(limit or header.num_documents, header.num_documents)
    paths = sorted(folder.glob("shard-*.npz"))[: -(-wanted // header.shard_documents)]
    shards = [_read_shard(path, header.vocab_size) for path in paths]
    ids = [id for shard_ids, _ in shards for id in shard_ids][:limit]
    if len(ids) != wanted:
        raise UserError(f"{folder} holds {len(ids)} of {wanted} documents; encode the corpus again.")
    return ids, csr_array(vstack([vectors for _, vectors in shards], format="csr"))[:wanted], header


def _check_folder(folder: Path, header: Header) -> None:
    there = _read_header(folder)
    if there is None:
        if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
            raise UserError(f"{folder} is in use and holds no vectors; give a new or an empty folder.")
    elif replace(there, num_documents=None) != header:
        names = {"shard_documents": "size of shards", "values": "type of values", "vocab_size": "size of vocabulary"}
        mine, theirs = asdict(header), asdict(replace(there, num_documents=None))
        other = [names.get(name, name) for name in mine if mine[name] != theirs[name]]
        raise UserError(f"{folder} holds vectors of another {' and '.join(other)}; give a new folder.")


def _write_header(folder: Path, header: Header) -> None:
    replace_text(folder / _HEADER, json.dumps(asdict(header), indent=2) + "\n")


def _read_header(folder: Path) -> Header | None:
    try:
        values = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
        return Header(**values | {"pruning": Pruning(**values.get("pruning", {}))})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _parts(documents: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    remaining = iter(documents)
    return iter(lambda: list(islice(remaining, size)), [])


def _shard_fingerprint(path: Path) -> str | None:
    """What the documents of a shard were; None if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as shard:
            return str(shard["fingerprint"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _write_shard(path: Path, ids: Sequence[str], vectors: csr_array, values: str, fingerprint: str) -> None:
    packed = np.frombuffer(json.dumps(ids).encode(), dtype=np.uint8)  # an array of strings loses NULs
    data, indices = vectors.data.astype(values), vectors.indices.astype(np.int32)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, fingerprint=fingerprint, ids=packed, data=data, indices=indices, indptr=vectors.indptr)


def _read_shard(path: Path, vocab_size: int) -> tuple[list[str], csr_array]:
    try:
        with np.load(path, allow_pickle=False) as shard:
            ids = json.loads(shard["ids"].tobytes())
            arrays = (shard["data"].astype(np.float32), shard["indices"], shard["indptr"])
        return ids, csr_array(arrays, shape=(len(ids), vocab_size))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} is damaged; encode the corpus again.") from error
