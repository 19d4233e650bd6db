"""Conversions between the forms of sparse vectors: torch (sparse, dense) and scipy CSR."""

from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, issparse, vstack
from torch import Tensor

# torch tensors, dense numpy arrays and scipy sparse matrices, `[vocab]` or `[rows, vocab]`; lists of single vectors
Vectors = Any


def as_csr(vectors: Vectors) -> csr_array:
    """Any form of vectors as CSR `[rows, vocab]`: float32 values, int32 sorted indices, no zeros.

    Raises:
        TypeError: not a tensor, an array, a sparse matrix or a list of them.
        ValueError: neither one nor two axes.

    >>> as_csr(torch.tensor([0.0, 2.0, 0.0])).toarray()
    array([[0., 2., 0.]], dtype=float32)
    """
    if issparse(vectors):
        return _tidy(csr_array(vectors))
    if isinstance(vectors, list | tuple) and vectors:
        return csr_array(vstack([as_csr(vector) for vector in vectors], format="csr"))
    if isinstance(vectors, np.ndarray):
        vectors = torch.from_numpy(vectors)
    if not isinstance(vectors, Tensor):
        raise TypeError(f"expected a tensor, an array, a sparse matrix or a list of them, got {type(vectors).__name__}")
    if vectors.ndim not in (1, 2):
        raise ValueError(f"expected [vocab] or [rows, vocab], got {tuple(vectors.shape)}")
    vectors = vectors.detach() if vectors.ndim == 2 else vectors.detach().unsqueeze(0)
    if vectors.layout is not torch.strided:
        coo = vectors.to_sparse_coo().coalesce().cpu()
        rows, columns = coo.indices().numpy()
        return _tidy(csr_array((coo.values().float().numpy(), (rows, columns)), shape=tuple(coo.shape)))
    rows, columns = vectors.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(vectors)).cpu().numpy()
    pointers = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values = vectors[rows, columns].float().cpu().numpy()
    return csr_array((values, columns.to(torch.int32).cpu().numpy(), pointers), shape=tuple(vectors.shape))


def _tidy(matrix: csr_array) -> csr_array:
    matrix = csr_array(matrix, dtype=np.float32)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return csr_array((matrix.data, matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)), shape=matrix.shape)


def csr_to_torch(matrix: csr_array) -> Tensor:
    """CSR as a coalesced torch COO tensor of the same shape."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    indices = torch.from_numpy(np.stack([rows, matrix.indices.astype(np.int64)]))
    values = torch.from_numpy(np.ascontiguousarray(matrix.data, dtype=np.float32))
    return torch.sparse_coo_tensor(indices, values, matrix.shape, is_coalesced=True, check_invariants=False)
