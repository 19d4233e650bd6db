"""The Common Index File Format, which PISA, BMP, Lucene and others exchange inverted lists in.

One file of protobuf messages, each after its length: a header, a list of postings for each term in the order of the
terms' bytes, a record for each document. Impacts stand where counts of words do.
Source: Lin et al., Supporting Interoperability Between Open-Source Search Engines with the Common Index File Format,
https://arxiv.org/abs/2003.08276, and the .proto file of https://github.com/osirrc/ciff.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from splade_lit.core.errors import UserError
from splade_lit.core.progress import WorkProgress
from splade_lit.engines.documents import Documents
from splade_lit.engines.features import FeatureNames
from splade_lit.engines.segments import Segment, write_segment
from splade_lit.exports.impacts import Counts, to_impacts

_VERSION = 1
_MOST_BYTES = 5  # of a number below 2 ** 32
_DOCUMENTS_AT_ONCE = 10_000


@dataclass(frozen=True)
class CiffRecord:
    """What a file holds.

    Attributes:
        scale: an impact is the nearest whole number of a weight times this.
        documents: how many.
        terms: posting lists.
        postings: impacts of all of them.
        vanished: weights whose impact would have been 0, and which are left out.
        largest: the largest impact.
    """

    scale: float
    documents: int
    terms: int
    postings: int
    vanished: int
    largest: int


def write_ciff(
    path: Path, documents: Documents, names: FeatureNames, scratch: Path, bits: int = 8, scale: float | None = None
) -> CiffRecord:
    """Write an index of documents.

    Args:
        path: of the file.
        documents: what is in it; they are read twice.
        names: terms of the dims.
        scratch: a folder that holds the posting lists meanwhile, as large as an exact index.
        bits: the largest weight gets the largest impact of so many bits.
        scale: what weights are multiplied by in place of that.

    Raises:
        UserError: weights or ids are none that can be written.
        OSError: there is no room.
    """
    write_segment(scratch, documents.parts, documents.vocab_size)
    segment = Segment(scratch, documents.vocab_size, None)
    largest = float(segment.values.max()) if len(segment.values) else 0.0
    if scale is None:
        scale = (2**bits - 1) / largest if largest else 1.0
    counts, lengths = Counts(), np.zeros(segment.num_documents, np.int64)
    frequencies, totals = np.zeros(documents.vocab_size, np.int64), np.zeros(documents.vocab_size, np.int64)
    most = 0
    for dim in range(documents.vocab_size):
        rows, impacts, weights = _list(segment, dim, scale)
        counts.add(0, weights, impacts)
        frequencies[dim], totals[dim] = len(impacts), impacts.sum()
        lengths[rows] += impacts
        most = max(most, int(impacts.max(initial=0)))
    if lengths.max(initial=0) > 2**31 - 1:
        raise UserError("The impacts of a document have no room in 32 bits; give a smaller --scale.")
    terms = int((frequencies > 0).sum())
    description = f"impacts are weights times {scale!r}; written by splade_lit"
    average = float(lengths.mean()) if len(lengths) else 0.0
    with path.open("wb") as file, WorkProgress("writing", "posting lists", terms) as progress:
        file.write(_delimited(_header(terms, segment.num_documents, int(totals.sum()), average, description)))
        for dim in sorted(np.flatnonzero(frequencies).tolist(), key=lambda dim: names.names[dim].encode()):
            rows, impacts, _ = _list(segment, dim, scale)
            term = names.names[dim].encode()
            head = _bytes(1, term) + _number(2, len(rows)) + _number(3, int(totals[dim]))
            postings = posting_messages(np.diff(rows, prepend=0), impacts)
            file.write(_varint(len(head) + len(postings)) + head)
            file.write(postings)
            progress.advance(1)
        for chunk in _document_records(segment, lengths):
            file.write(chunk)
    return CiffRecord(scale, segment.num_documents, terms, counts.postings, counts.vanished, most)


def _list(segment: Segment, dim: int, scale: float) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"], int]:
    """Rows and impacts of a term, without those that are 0, and how many weights it has."""
    start, end = int(segment.starts[dim]), int(segment.starts[dim + 1])
    impacts = to_impacts(segment.values[start:end], scale)
    kept = impacts > 0
    return segment.documents[start:end][kept].astype(np.int64), impacts[kept], end - start


def _document_records(segment: Segment, lengths: Int64[np.ndarray, " documents"]) -> Iterator[bytes]:
    for first in range(0, segment.num_documents, _DOCUMENTS_AT_ONCE):
        rows = range(first, min(first + _DOCUMENTS_AT_ONCE, segment.num_documents))
        yield b"".join(
            _delimited(
                _number(1, row) + _bytes(2, segment.id(row).encode("utf-8", "replace")) + _number(3, int(lengths[row]))
            )
            for row in rows
        )


def _header(terms: int, documents: int, total: int, average: float, description: str) -> bytes:
    numbers = ((1, _VERSION), (2, terms), (3, documents), (4, terms), (5, documents), (6, total))
    parts = [_number(field, number) for field, number in numbers]
    return b"".join(parts) + bytes([7 << 3 | 1]) + struct.pack("<d", average) + _bytes(8, description.encode())


def posting_messages(gaps: Int64[np.ndarray, " postings"], impacts: Int64[np.ndarray, " postings"]) -> bytes:
    r"""The postings of a term: differences of document numbers, and impacts, as field 4 of its list.

    >>> posting_messages(np.array([0, 300]), np.array([7, 1])).hex(" ")
    '22 04 08 00 10 07 22 05 08 ac 02 10 01'
    """
    gap_bytes, gap_sizes = _varints(gaps)
    impact_bytes, impact_sizes = _varints(impacts)
    rows = len(gaps)
    table = np.zeros((rows, 4 + 2 * _MOST_BYTES), np.uint8)
    table[:, 0], table[:, 1] = 4 << 3 | 2, 2 + gap_sizes + impact_sizes
    table[:, 2], table[:, 3 + _MOST_BYTES] = 1 << 3, 2 << 3
    table[:, 3 : 3 + _MOST_BYTES], table[:, 4 + _MOST_BYTES :] = gap_bytes, impact_bytes
    used = np.ones(table.shape, bool)
    places = np.arange(_MOST_BYTES)
    used[:, 3 : 3 + _MOST_BYTES] = places < gap_sizes[:, None]
    used[:, 4 + _MOST_BYTES :] = places < impact_sizes[:, None]
    return table[used].tobytes()


def _varints(
    numbers: Int64[np.ndarray, " numbers"],
) -> tuple[UInt8[np.ndarray, "numbers bytes"], Int64[np.ndarray, " numbers"]]:
    """The bytes of numbers below 2 ** 32, seven bits each, the lowest first; and how many of the bytes each needs."""
    groups = numbers[:, None] >> (7 * np.arange(_MOST_BYTES))
    sizes = np.maximum((groups > 0).sum(axis=1), 1)
    more = np.arange(_MOST_BYTES) < (sizes - 1)[:, None]
    return ((groups & 127) | (more * 128)).astype(np.uint8), sizes


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _number(field: int, number: int) -> bytes:
    return bytes([field << 3]) + _varint(number)


def _bytes(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _delimited(message: bytes) -> bytes:
    return _varint(len(message)) + message
