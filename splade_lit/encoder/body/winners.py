"""Which token of a document holds the maximum of each active dim, found again for the backward pass of the head.

Winners come in blocks `(documents, dims, rows, vectors)`: the document (one number, or one for each pair), the active
dims, the rows of `hidden` that hold their maxima, and the output embeddings of the dims.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

# Logits this close (relative) to the maximum count as ties, which go to the first token: rounding of a matrix product
# depends on the shape of its operands, and two equal tokens must not swap places between forward and backward.
_TIE_ULPS = 8
# Columns of one block at most, so that a dense document does not need its whole [tokens, vocab] at once.
_COLUMNS = 4096
# Elements computed at a time where all documents go together: logits, or the weights gathered for them.
_ELEMENTS = 1 << 25

_Winners = Iterator[tuple[int | Tensor, Tensor, Tensor, Tensor]]


def first_maximum(logits: Float[Tensor, "*documents tokens dims"]) -> Int64[Tensor, "*documents dims"]:
    """Number of the token that holds the maximum of each dim; the first one if several share it."""
    top = logits.amax(-2, keepdim=True)
    tolerance = _TIE_ULPS * torch.finfo(logits.dtype).eps * top.abs()
    # A maximum over token numbers that count down: several times faster than argmax over the tokens.
    tokens = logits.shape[-2]
    countdown = torch.arange(tokens, 0, -1, dtype=torch.int32, device=logits.device)
    first = ((logits >= top - tolerance) * countdown[:, None]).amax(-2)
    return (tokens - first).clamp_(max=tokens - 1).long()


def active_columns(
    active: Bool[Tensor, "documents vocab"], offsets: Sequence[int]
) -> Iterator[tuple[int, slice, Int64[Tensor, " dims"]]]:
    """Document, its rows of `hidden`, and some of its active dims, until each active dim has been given once."""
    # This waits for the device: the active dims of each document decide the shapes of what follows.
    documents, dims = active.nonzero(as_tuple=True)
    counts = torch.bincount(documents, minlength=len(active)).tolist()
    for i, columns in enumerate(dims.split(counts)):
        for block in columns.split(_COLUMNS) if len(columns) else ():
            yield i, slice(offsets[i], offsets[i + 1]), block


def winners_by_document(
    hidden: Tensor, weight: Tensor, offsets: Sequence[int], active: Tensor, dtype: torch.dtype
) -> _Winners:
    """Winners of one document after another, the logits compared in `dtype`."""
    for i, rows, columns in active_columns(active, offsets):
        vectors = weight[columns]
        yield i, columns, rows.start + first_maximum((hidden[rows] @ vectors.T).to(dtype)), vectors


def winners_together(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    offsets: Sequence[int],
    active: Bool[Tensor, "documents vocab"],
    dtype: torch.dtype,
) -> _Winners:
    """The same for all documents, of which one has tokens at least, in a few large operations.

    Documents are padded to the longest, and active dims to the largest number of a document. The surplus arithmetic
    takes less time than many small operations on a GPU.
    """
    documents, dims = active.nonzero(as_tuple=True)  # the device is waited for here,
    counts = active.sum(1)
    most = int(counts.max())  # and here
    longest = max(end - start for start, end in pairwise(offsets))
    cuts = torch.tensor(offsets).to(hidden.device, non_blocking=True)
    rows = cuts[:-1, None] + torch.arange(longest, device=hidden.device)
    outside = rows >= cuts[1:, None]
    states = hidden[rows.clamp_(max=len(hidden) - 1)]
    # The active dims of each document side by side; the rest of a row is padding, computed and never read.
    places = torch.arange(len(dims), device=dims.device) - (counts.cumsum(0) - counts)[documents]
    columns = dims.new_zeros(len(active), most)
    columns[documents, places] = dims
    winners = torch.empty_like(columns)
    step = max(1, _ELEMENTS // (len(active) * max(longest, hidden.shape[1])))
    for left in range(0, most, step):
        chosen = columns[:, left : left + step]
        logits = torch.bmm(states, weight[chosen].transpose(1, 2)).to(dtype)
        winners[:, left : left + step] = first_maximum(logits.masked_fill_(outside[:, :, None], -torch.inf))
    # With NaN no token compares as the maximum, and the last one is returned: that of the document, not of the longest.
    last = cuts[1:][documents] - 1
    found = documents, dims, torch.minimum(cuts[documents] + winners[documents, places], last)
    for numbers, block, tokens in zip(*(x.split(_ELEMENTS // weight.shape[1]) for x in found), strict=True):
        yield numbers, block, tokens, weight[block]
