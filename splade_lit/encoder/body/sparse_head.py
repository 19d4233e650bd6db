"""The head of a document encoder: pooled vocabulary weights without `[documents, tokens, vocab]`.

A SPLADE document vector is `d_j = act(max_l logit_lj)` (Formal et al. 2021, "SPLADE v2", eq. 6): the maximum over
tokens is taken first and the activation after it, which is the same because relu and log1p are monotone.

Forward: logits are made one tile of the vocabulary at a time, for all tokens of all documents in one matrix product,
and only their pooled values are kept. Backward: the gradient of a (document, dim) pair with max pooling flows to one
token, and only if the dim is active. The winning token is found again by recomputing the logits of the active dims
alone, so the cost grows with the number of active dims: next to nothing for sparse vectors, one more pass over the
logits for an untrained, dense model. Only the hidden states and the `[documents, vocab]` output are saved for backward.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from splade_lit.encoder.body.winners import active_columns, winners_by_document, winners_together

Pooling = Literal["max", "sum"]
Activation = Literal["relu", "log1p_relu"]

# Elements of one tile of logits: large enough for full speed of the matrix product, small enough to stay in the cache
# of a CPU. A GPU wants few operations.
_TILE_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
_TILE_COLUMNS = 512
# A GPU runs its slowest kernels on rows that do not start at aligned addresses; 30,522 columns give such rows.
_ALIGNED_COLUMNS = 64
# Devices on which an operation takes longer to start than to run: there all documents share each operation.
_BATCHED_DEVICES = {"cuda"}


@torch.compiler.disable  # torch.compile keeps the model around this call and runs the call itself as it is written
def splade_pool(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    offsets: Sequence[int],
    pooling: Pooling = "max",
    activation: Activation = "relu",
    tile_columns: int | None = None,
    known: Float[Tensor, "documents vocab"] | None = None,
) -> Float[Tensor, "documents vocab"]:
    """Pooled vocabulary weights of ragged documents, as SPLADE defines them.

    With max pooling `act(max_l logit_l)`, with sum pooling `sum_l act(logit_l)`, where
    `logit = hidden @ weight.T + bias`. A document without tokens gets zeros.

    Gradients equal those of dense autograd. Where two tokens share the maximum, the first one takes the whole gradient
    (as `torch.max(dim)` does; `torch.amax` would share it).

    Args:
        hidden: states of all tokens, the documents one after another.
        weight: output embeddings (decoder).
        bias: decoder bias.
        offsets: `documents + 1` row numbers; document i has the rows `offsets[i]:offsets[i + 1]`.
        pooling: "max" or "sum" over the tokens of a document.
        activation: "relu" for log1p(relu(x)), "log1p_relu" for a second log1p on top (sentence-transformers' names).
        tile_columns: vocabulary entries a tile of logits holds; chosen from the number of tokens if not given.
        known: the result, where the same operands have given it before and only gradients are wanted.

    Returns:
        fp32 (fp64 for fp64 input). Under autocast the matrix products run in the autocast dtype; its results are fp32.
    """
    settings = tuple(offsets), pooling, activation, tile_columns, known
    return _SpladePool.apply(*_operands(hidden, weight), bias, *settings)


def max_logits(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    offsets: Sequence[int],
) -> Float[Tensor, "documents vocab"]:
    """Largest logit of each document and dim before any activation, without gradients; -inf without tokens."""
    with torch.no_grad():
        return _pool_tiles(*_operands(hidden, weight), bias, tuple(offsets))


def _operands(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both factors of the logits in the dtype of their product."""
    if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(hidden.device.type)
        return hidden.to(dtype), weight.to(dtype)
    return hidden.to(weight.dtype), weight


class _SpladePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        offsets, pooling, activation, tile_columns, known = settings
        with torch.autocast(hidden.device.type, enabled=False):
            if known is not None:
                pooled = known.clone()
            elif pooling == "max":
                pooled = _activate(_pool_tiles(hidden, weight, bias, offsets, tile_columns), activation)
            else:
                pooled = _pool_tiles(hidden, weight, bias, offsets, tile_columns, activation)
        ctx.save_for_backward(hidden, weight, bias, pooled)
        ctx.settings = offsets, pooling, activation
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_pooled: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, pooled = ctx.saved_tensors
        offsets, pooling, activation = ctx.settings
        inputs = list(zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True))
        grads = [torch.zeros_like(x, dtype=pooled.dtype) if needed else None for x, needed in inputs]
        grad_hidden, grad_weight, grad_bias = grads
        with torch.autocast(hidden.device.type, enabled=False):
            # NaN flows too, so that a broken step shows in the gradients.
            flowing = (grad_pooled != 0) & ~(pooled <= 0)
            if pooling == "max":
                together = hidden.device.type in _BATCHED_DEVICES and len(hidden)
                find_winners = winners_together if together else winners_by_document
                for documents, dims, rows, vectors in find_winners(hidden, weight, offsets, flowing, pooled.dtype):
                    slope = grad_pooled[documents, dims] * _slope_from_value(pooled[documents, dims], activation)
                    if grad_hidden is not None:
                        grad_hidden.index_add_(0, rows, slope[:, None] * vectors)
                    if grad_weight is not None:
                        grad_weight.index_add_(0, dims, slope[:, None] * hidden[rows])
                    if grad_bias is not None:
                        grad_bias.index_add_(0, dims, slope)
            else:
                for i, own_rows, dims in active_columns(flowing, offsets):
                    states, vectors = hidden[own_rows], weight[dims]
                    logits = (states @ vectors.T).to(pooled.dtype)
                    if bias is not None:
                        logits += bias[dims]
                    slopes = grad_pooled[i, dims] * _slope_from_logit(logits, activation)
                    if grad_bias is not None:
                        grad_bias.index_add_(0, dims, slopes.sum(0))
                    # In half precision the products run in half as well; their sums over documents stay fp32.
                    slopes = slopes.to(hidden.dtype)
                    if grad_hidden is not None:
                        grad_hidden[own_rows] += slopes @ vectors
                    if grad_weight is not None:
                        grad_weight.index_add_(0, dims, (slopes.T @ states).to(grad_weight.dtype))
        results = (None if grad is None else grad.to(x.dtype) for grad, (x, _) in zip(grads, inputs, strict=True))
        return (*results, None, None, None, None, None)


def _pool_tiles(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: tuple[int, ...],
    tile_columns: int | None = None,
    summed: Activation | None = None,
) -> Tensor:
    """Largest logits of each document; with `summed` the sums of its logits after this activation."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    pooled = hidden.new_full((len(offsets) - 1, len(weight)), 0.0 if summed else -torch.inf, dtype=dtype)
    together = not summed and hidden.device.type in _BATCHED_DEVICES and len(pooled)
    cuts = torch.tensor(offsets).to(hidden.device, non_blocking=True) if together else None
    documents = [(i, start, end) for i, (start, end) in enumerate(pairwise(offsets)) if end > start]
    for left, right, logits in _tiles(hidden, weight, tile_columns):
        if together:
            pooled[:, left:right] = torch.segment_reduce(logits, "max", offsets=cuts, unsafe=True)
            continue
        if summed:
            logits = logits.to(dtype)
            logits = _activate(logits if bias is None else logits + bias[left:right], summed)
        for i, start, end in documents:
            pooled[i, left:right] = logits[start:end].sum(0) if summed else logits[start:end].amax(0)
    # One bias for all tokens: adding it after the maximum is the same, and happens in fp32.
    return pooled if bias is None or summed else pooled.add_(bias)


def _tiles(hidden: Tensor, weight: Tensor, tile_columns: int | None) -> Iterator[tuple[int, int, Tensor]]:
    """`(left, right, hidden @ weight[left:right].T)` over the vocabulary; the memory of a tile is used again."""
    tokens, vocab = len(hidden), len(weight)
    elements = _TILE_ELEMENTS.get(hidden.device.type, _TILE_ELEMENTS["cpu"])
    columns = min(vocab, tile_columns or max(_TILE_COLUMNS, elements // max(tokens, 1)))
    if tile_columns is None and columns > _ALIGNED_COLUMNS:
        columns -= columns % _ALIGNED_COLUMNS
    memory = hidden.new_empty(tokens * columns)
    for left in range(0, vocab, columns):
        right = min(left + columns, vocab)
        logits = memory[: tokens * (right - left)].view(tokens, right - left)
        yield left, right, torch.mm(hidden, weight[left:right].T, out=logits)


def _activate(x: Tensor, activation: Activation) -> Tensor:
    """Activation, in place."""
    x.relu_().log1p_()
    return x.log1p_() if activation == "log1p_relu" else x


def _slope_from_value(value: Tensor, activation: Activation) -> Tensor:
    """Derivative of the activation at active dims, from its value: log1p(x) = v, so 1 / (1 + x) = exp(-v)."""
    if activation == "relu":
        return torch.exp(-value)
    return torch.exp(-value - torch.expm1(value))


def _slope_from_logit(logits: Tensor, activation: Activation) -> Tensor:
    x = logits.relu()
    slope = (logits > 0) / (1 + x)
    return slope / (1 + torch.log1p(x)) if activation == "log1p_relu" else slope
