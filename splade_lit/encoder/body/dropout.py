"""Dropout on a CPU: cheap masks, and attention that keeps nothing of size `[tokens, tokens]` for its backward pass.

On a CPU torch draws dropout masks one number at a time and keeps them as floats. In a small model that takes as long as
the attention itself. Here masks come from 16-bit numbers of a faster generator, whose seed is drawn from torch's, so
that runs stay repeatable. Masks are kept as bytes; attention keeps their seed alone.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS = 1 << 16


class CpuDropout(nn.Dropout):
    """`nn.Dropout` with the masks of this module on a CPU; torch's own elsewhere."""

    def forward(self, input: Tensor) -> Tensor:
        """The input; in training with some elements set to 0 and the others scaled up."""
        if not (self.training and self.p and input.is_cpu) or torch.compiler.is_compiling():
            return super().forward(input)
        keep = KeepMasks(self.p, draw_seed())
        return torch.where(keep.mask(input.shape), input * keep.scale, 0.0)


def use_cpu_dropout(model: nn.Module) -> None:
    """Replace each `nn.Dropout` of a model by `CpuDropout`; names and settings stay."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Dropout:
            dropout = CpuDropout(module.p)
            dropout.training = module.training
            model.set_submodule(name, dropout)


def draw_seed() -> int:
    """A seed from torch's random numbers."""
    return int(torch.randint(1 << 62, (), dtype=torch.int64))


class KeepMasks:
    """A stream of dropout masks, the same for the same seed.

    `probability`, that an element is dropped, is rounded to a 65,536th. `scale` is the factor on the elements that are
    kept; it leaves expectations as they are.
    """

    def __init__(self, probability: float, seed: int) -> None:
        self._limit = np.uint16(min(round(probability * _LEVELS), _LEVELS - 1))
        self._generator = np.random.SFC64(seed)
        self.scale = 1 / (1 - int(self._limit) / _LEVELS)

    def mask(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """The next mask: True where an element is kept."""
        size = int(np.prod(shape))
        numbers = self._generator.random_raw(-(-size // 4)).view(np.uint16)[:size]
        return torch.from_numpy(numbers >= self._limit).view(shape)


# torch sees one operation, so that selective checkpointing can keep its result instead of running it again.
@torch.library.custom_op("splade_lit::dropout_attention", mutates_args=())
def dropout_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    dropout: float,
    scaling: float,
    sliding_window: int | None,
    seed: int,
) -> Tensor:
    """Attention inside each document with dropout on its weights, which the backward pass computes again.

    `query`, `key` and `value` are `[1, heads, tokens, head_dim]` on a CPU, `lengths` the tokens of each document. With
    a `sliding_window` tokens attend to those less than so many positions away. The result is
    `[1, tokens, heads, head_dim]`.
    """
    _, heads, tokens, head_dim = query.shape
    output = query.new_empty(1, tokens, heads, head_dim)
    keep = KeepMasks(dropout, seed)
    parts = zip(*(x[0].split(lengths, 1) for x in (query, key, value)), output[0].split(lengths), strict=True)
    for q, k, v, out in parts:
        weights = _weights(q, k, scaling, sliding_window)
        kept = torch.where(keep.mask(weights.shape), weights, 0.0)
        out.copy_((kept @ v).transpose(0, 1)).mul_(keep.scale)
    return output


def _weights(q: Tensor, k: Tensor, scaling: float, sliding_window: int | None) -> Tensor:
    scores = (q * scaling) @ k.transpose(1, 2)
    if (outside := outside_window(q.shape[1], sliding_window, q.device)) is not None:
        scores.masked_fill_(outside, -torch.inf)
    return torch.softmax(scores, dim=-1)


def outside_window(length: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """Mask `[length, length]`, True where positions are too far apart to attend; None if no two are."""
    if sliding_window is None or length <= sliding_window:
        return None
    position = torch.arange(length, device=device)
    return (position[:, None] - position).abs() >= sliding_window


def _save_for_backward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    query, key, value, *ctx.settings = inputs
    ctx.save_for_backward(query, key, value, output)


@torch.no_grad()
def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, output = ctx.saved_tensors
    lengths, dropout, scaling, sliding_window, seed = ctx.settings
    # In memory [1, tokens, heads, head_dim], like the states that they flow back to.
    grads = [torch.empty_like(output).transpose(1, 2) for _ in range(3)]
    keep = KeepMasks(dropout, seed)
    by_head = (query, key, value, output.transpose(1, 2), grad_output.transpose(1, 2), *grads)
    for q, k, v, out, grad_out, grad_q, grad_k, grad_v in zip(*(x[0].split(lengths, 1) for x in by_head), strict=True):
        weights = _weights(q, k, scaling, sliding_window)
        mask = keep.mask(weights.shape)
        grad_out = grad_out * keep.scale
        grad_v.copy_(torch.where(mask, weights, 0.0).transpose(1, 2) @ grad_out)
        # Weight times its gradient, summed over keys: output times its gradient (Dao et al. 2022, FlashAttention).
        inner = (grad_out * out).sum(-1, keepdim=True) / keep.scale
        grad_scores = torch.where(mask, grad_out @ v.transpose(1, 2), 0.0).sub_(inner).mul_(weights)
        grad_q.copy_(grad_scores @ k).mul_(scaling)
        grad_k.copy_(grad_scores.transpose(1, 2) @ q).mul_(scaling)
    return (*grads, None, None, None, None, None)


dropout_attention.register_autograd(_backward, setup_context=_save_for_backward)
