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

from splade_lit.encoder.body.winners import first_maximum, winning_rows

Pooling = Literal["max", "sum"]
Activation = Literal["relu", "log1p_relu"]

# Elements of one tile of logits: large enough for full speed of the matrix product, small enough to stay in the cache
# of a CPU. A GPU wants few operations.
_TILE_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
_TILE_COLUMNS = 512
# A GPU runs its slowest kernels on rows that do not start at aligned addresses; 30,522 columns give such rows.
_ALIGNED_COLUMNS = 64
# Columns of one backward tile at most, so that a dense document does not need its whole [tokens, vocab] at once.
_BACKWARD_COLUMNS = 4096
# Numbers in a block of states gathered for the active dims of all documents.
_BLOCK_ELEMENTS = 1 << 25
# Devices on which an operation takes longer to start than to run: there all documents share each operation.
_BATCHED_DEVICES = {"cuda"}


def splade_pool(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    offsets: Sequence[int],
    pooling: Pooling = "max",
    activation: Activation = "relu",
    tile_columns: int | None = None,
) -> Float[Tensor, "documents vocab"]:
    """Pooled vocabulary weights of ragged documents, as SPLADE defines them.

    With max pooling `act(max_l logit_l)`, with sum pooling `sum_l act(logit_l)`, where
    `logit = hidden @ weight.T + bias` and `act` is log1p(relu(x)) or, for `log1p_relu`, log1p(log1p(relu(x))). A
    document without tokens gets zeros.

    Gradients equal those of dense autograd. Where two tokens share the maximum, the first one takes the whole gradient
    (as `torch.max(dim)` does; `torch.amax` would share it).

    Args:
        hidden: states of all tokens, the documents one after another.
        weight: output embeddings (decoder).
        bias: decoder bias.
        offsets: `documents + 1` row numbers; document i has the rows `offsets[i]:offsets[i + 1]`.
        pooling: "max" or "sum" over the tokens of a document.
        activation: "relu" for log1p(relu(x)), "log1p_relu" for a second log1p on top. The names are those of
            sentence-transformers.
        tile_columns: vocabulary entries a tile of logits holds; chosen from the number of tokens if not given.

    Returns:
        fp32 (fp64 for fp64 input). Under autocast the matrix products run in the autocast dtype; its results are fp32.
    """
    hidden, weight = _operands(hidden, weight)
    return _pool(hidden, weight, bias, tuple(offsets), pooling, activation, tile_columns)


def max_logits(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    offsets: Sequence[int],
) -> Float[Tensor, "documents vocab"]:
    """Largest logit of each document and dim before any activation, without gradients.

    A document without tokens gets -inf.
    """
    with torch.no_grad():
        return _max_logits(*_operands(hidden, weight), bias, tuple(offsets), None)


def _operands(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both factors of the logits in the dtype of their product."""
    if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(hidden.device.type)
        return hidden.to(dtype), weight.to(dtype)
    return hidden.to(weight.dtype), weight


@torch.compiler.disable
def _pool(hidden: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    # torch.compile keeps the model around this call and runs the call itself as it is written.
    return _SpladePool.apply(hidden, weight, bias, *settings)


class _SpladePool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        offsets: tuple[int, ...],
        pooling: Pooling,
        activation: Activation,
        tile_columns: int | None,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            pooled = _forward(hidden, weight, bias, offsets, pooling, activation, tile_columns)
        ctx.save_for_backward(hidden, weight, bias, pooled)
        ctx.settings = offsets, pooling, activation
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_pooled: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, pooled = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            grads = _backward(grad_pooled, hidden, weight, bias, pooled, ctx.needs_input_grad, *ctx.settings)
        return (*grads, None, None, None, None)


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: tuple[int, ...],
    pooling: Pooling,
    activation: Activation,
    tile_columns: int | None,
) -> Tensor:
    if pooling == "max":
        return _activate(_max_logits(hidden, weight, bias, offsets, tile_columns), activation)
    pooled = _new_output(hidden, weight, offsets, fill=0.0)
    for left, right, logits in _tiles(hidden, weight, tile_columns):
        logits = logits.to(pooled.dtype)
        values = _activate(logits if bias is None else logits + bias[left:right], activation)
        for i, (start, end) in _documents(offsets):
            pooled[i, left:right] = values[start:end].sum(0)
    return pooled


def _max_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, offsets: tuple[int, ...], tile_columns: int | None
) -> Tensor:
    pooled = _new_output(hidden, weight, offsets, fill=-torch.inf)
    if hidden.device.type in _BATCHED_DEVICES and len(pooled):
        cuts = torch.tensor(offsets).to(hidden.device, non_blocking=True)
        for left, right, logits in _tiles(hidden, weight, tile_columns):
            pooled[:, left:right] = torch.segment_reduce(logits, "max", offsets=cuts, unsafe=True)
    else:
        for left, right, logits in _tiles(hidden, weight, tile_columns):
            for i, (start, end) in _documents(offsets):
                pooled[i, left:right] = logits[start:end].amax(0)
    # One bias for all tokens: adding it after the maximum is the same, and happens in fp32.
    return pooled if bias is None else pooled.add_(bias)


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


def _documents(offsets: tuple[int, ...]) -> list[tuple[int, tuple[int, int]]]:
    """Number and rows of each document that has tokens."""
    return [(i, (start, end)) for i, (start, end) in enumerate(pairwise(offsets)) if end > start]


def _new_output(hidden: Tensor, weight: Tensor, offsets: tuple[int, ...], fill: float) -> Tensor:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return hidden.new_full((len(offsets) - 1, len(weight)), fill, dtype=dtype)


def _backward(
    grad_pooled: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pooled: Tensor,
    needed: Sequence[bool],
    offsets: tuple[int, ...],
    pooling: Pooling,
    activation: Activation,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    # NaN flows too, so that a broken step shows in the gradients.
    flowing = (grad_pooled != 0) & ~(pooled <= 0)
    grad_hidden = torch.zeros_like(hidden, dtype=pooled.dtype)
    grad_weight = torch.zeros_like(weight, dtype=pooled.dtype) if needed[1] else None
    grad_bias = torch.zeros_like(bias, dtype=pooled.dtype) if bias is not None and needed[2] else None
    grads = grad_hidden, grad_weight, grad_bias
    if pooling == "max" and hidden.device.type in _BATCHED_DEVICES and len(hidden):
        _add_gradients_together(grads, flowing, grad_pooled, hidden, weight, pooled, offsets, activation)
    else:
        _add_gradients_by_document(
            grads, flowing, grad_pooled, hidden, weight, bias, pooled, offsets, pooling, activation
        )
    return (
        grad_hidden.to(hidden.dtype) if needed[0] else None,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
    )


# Gradients of states, weight and bias; None where not needed.
_Grads = tuple[Tensor, Tensor | None, Tensor | None]


def _add_gradients_by_document(
    grads: _Grads,
    flowing: Tensor,
    grad_pooled: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pooled: Tensor,
    offsets: tuple[int, ...],
    pooling: Pooling,
    activation: Activation,
) -> None:
    grad_hidden, grad_weight, grad_bias = grads
    # This waits for the device, because the active dims of each document decide the shapes below.
    documents, dims = flowing.nonzero(as_tuple=True)
    counts = torch.bincount(documents, minlength=len(pooled)).tolist()
    for i, active in enumerate(dims.split(counts)):
        states = hidden[offsets[i] : offsets[i + 1]]
        grad_states = grad_hidden[offsets[i] : offsets[i + 1]]
        for columns in active.split(_BACKWARD_COLUMNS) if len(active) else ():
            vectors = weight[columns]
            logits = (states @ vectors.T).to(pooled.dtype)
            upstream = grad_pooled[i, columns]
            if pooling == "max":
                slope = upstream * _slope_from_value(pooled[i, columns], activation)
                winner = first_maximum(logits)
                grad_states.index_add_(0, winner, slope[:, None] * vectors)
                grad_vectors = slope[:, None] * states[winner]
            else:
                if bias is not None:
                    logits += bias[columns]
                grad_logits = upstream * _slope_from_logit(logits, activation)
                slope = grad_logits.sum(0)
                # In half precision the products run in half as well; their sums over documents stay fp32.
                grad_logits = grad_logits.to(hidden.dtype)
                grad_states += grad_logits @ vectors
                grad_vectors = grad_logits.T @ states
            if grad_weight is not None:
                grad_weight.index_add_(0, columns, grad_vectors.to(grad_weight.dtype))
            if grad_bias is not None:
                grad_bias.index_add_(0, columns, slope)


def _add_gradients_together(
    grads: _Grads,
    flowing: Tensor,
    grad_pooled: Tensor,
    hidden: Tensor,
    weight: Tensor,
    pooled: Tensor,
    offsets: tuple[int, ...],
    activation: Activation,
) -> None:
    """The same for max pooling, in operations over all documents."""
    grad_hidden, grad_weight, grad_bias = grads
    pairs = winning_rows(hidden, weight, offsets, flowing, pooled.dtype)
    for documents, dims, rows in zip(*(x.split(_BLOCK_ELEMENTS // weight.shape[1]) for x in pairs), strict=True):
        slope = grad_pooled[documents, dims] * _slope_from_value(pooled[documents, dims], activation)
        grad_hidden.index_add_(0, rows, slope[:, None] * weight[dims])
        if grad_weight is not None:
            grad_weight.index_add_(0, dims, slope[:, None] * hidden[rows])
        if grad_bias is not None:
            grad_bias.index_add_(0, dims, slope)


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
