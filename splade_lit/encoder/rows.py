"""Rows of CSR matrices, the form of many sparse vectors; no torch, as looking queries up does without."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_array, vstack

from splade_lit.core.host_memory import return_free_memory
from splade_lit.encoder.pruning import Pruning

_DOCUMENTS_PER_BATCH = 512


def encode_by_length(
    encode: Callable[[list[np.ndarray]], csr_array],
    token_ids: Sequence[np.ndarray],
    tokens_per_batch: int,
    pruning: Pruning,
    on_batch: Callable[[int], None] | None,
) -> csr_array:
    """Vectors `[documents, vocab]` in the order given, from batches of documents of like length.

    A batch has `tokens_per_batch` tokens, as if padded, at most (or one document). `encode` gives its vectors, also
    those of an empty batch, which are then pruned; `on_batch` is called with the number of its documents.
    """
    order = np.argsort([-len(ids) for ids in token_ids], kind="stable")
    parts, start = [encode([])], 0
    while start < len(order):
        size = tokens_per_batch // max(len(token_ids[order[start]]), 1)
        batch = [token_ids[row] for row in order[start : start + min(max(size, 1), _DOCUMENTS_PER_BATCH)]]
        parts.append(prune_documents(encode(batch), pruning))
        start += len(batch)
        if len(batch) < len(order):
            return_free_memory()  # or it would grow from batch to batch, as these have many sizes
        if on_batch is not None:
            on_batch(len(batch))
    return csr_array(vstack(parts, format="csr")[np.argsort(order)])


def look_up(weights: np.ndarray, token_ids: Sequence[np.ndarray]) -> csr_array:
    """Query vectors `[queries, vocab]`: float32 values, int32 indices, zeros left out.

    `weights` is float32 `[vocab]`; each query is its distinct ascending token ids, as `tokenize_queries` gives them.
    """
    indices = np.concatenate(token_ids).astype(np.int32) if len(token_ids) else np.empty(0, np.int32)
    pointers = np.cumsum([0, *map(len, token_ids)], dtype=np.int32)
    matrix = csr_array((weights[indices], indices, pointers), shape=(len(token_ids), len(weights)))
    matrix.eliminate_zeros()
    return matrix


def split_rows(matrix: csr_array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`(dims, weights)` of each row."""
    for start, end in pairwise(matrix.indptr):
        yield matrix.indices[start:end], matrix.data[start:end]


def keep_largest(matrix: csr_array, max_active_dims: int | None) -> csr_array:
    """The `max_active_dims` weights of each row that are largest in absolute value; all if None.

    Of equal weights at the cut the one with the smaller dim stays.

    Raises:
        ValueError: `max_active_dims` below 1.

    >>> keep_largest(csr_array(np.array([[3.0, 1.0, 2.0]])), 2).toarray()
    array([[3., 0., 2.]])
    """
    if max_active_dims is None:
        return matrix
    if max_active_dims < 1:
        raise ValueError(f"max_active_dims must be at least 1, got {max_active_dims}")
    counts = np.diff(matrix.indptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((-np.abs(matrix.data), rows))
    index = np.sort(order[np.arange(len(order)) - matrix.indptr[rows] < max_active_dims])
    pointers = np.concatenate([[0], np.cumsum(np.minimum(counts, max_active_dims))]).astype(np.int32)
    return csr_array((matrix.data[index], matrix.indices[index], pointers), shape=matrix.shape)


def prune_documents(matrix: csr_array, pruning: Pruning) -> csr_array:
    """Document vectors `[documents, vocab]` with the weights that the limits let stay; sizes are absolute values.

    Raises:
        ValueError: `max_document_active_dims` below 1, or `min_document_weight_share` not from 0 to 1.

    >>> documents = csr_array(np.array([[3.0, 1.0, 2.0], [0.5, 0.0, 0.2]]))
    >>> prune_documents(documents, Pruning(min_document_weight=0.5, min_document_weight_share=0.5)).toarray()
    array([[3. , 0. , 2. ],
           [0.5, 0. , 0. ]])
    """
    share = pruning.min_document_weight_share
    if not 0 <= share <= 1:
        raise ValueError(f"min_document_weight_share must be from 0 to 1, got {share}")
    matrix = keep_largest(matrix, pruning.max_document_active_dims)  # which never drops the largest weight
    if not (share or pruning.min_document_weight):
        return matrix
    num_rows, sizes = matrix.shape[0], np.abs(matrix.data)
    rows = np.repeat(np.arange(num_rows), np.diff(matrix.indptr))
    largest = np.zeros(num_rows, sizes.dtype)
    np.maximum.at(largest, rows, sizes)
    kept = sizes >= np.maximum(share * largest, pruning.min_document_weight)[rows]
    pointers = np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=num_rows))]).astype(np.int32)
    return csr_array((matrix.data[kept], matrix.indices[kept], pointers), shape=matrix.shape)
