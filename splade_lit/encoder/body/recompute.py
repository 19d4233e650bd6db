"""Which activations of the body are kept for the backward pass, and which are computed again there."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from splade_lit.core.host_memory import return_free_memory

Recompute = Literal["nothing", "cheap", "layers"]

_PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}


def set_recompute(model: nn.Module, recompute: Recompute) -> None:
    """Set which activations a model of transformers computes again in the backward pass; it is changed in place.

    "nothing"; "cheap" for elementwise operations and the widening product of the feed-forward part, while attention and
    products with a narrow result are kept (Korthikanti et al. 2023, "Reducing activation recomputation in large
    transformer models"); "layers" for whole layers (Chen et al. 2016, "Training deep nets with sublinear memory cost").

    Only its `GradientCheckpointingLayer`s take part. The last one always keeps its activations: its backward pass comes
    first, at the peak of memory either way.
    """
    if recompute == "nothing":
        return
    # Layer by layer: the model's own switch would warn of a cache of keys and values, which encoders do not have.
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)][:-1]
    for index, layer in enumerate(layers):
        trims = recompute == "layers" or index in (len(layers) - 1, len(layers) // 2)
        contexts = partial(_contexts, recompute, next(layer.parameters()), trims)
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, context_fn=contexts)  # type: ignore[assignment]
        layer.gradient_checkpointing = True


def _contexts(
    recompute: Recompute, weight: nn.Parameter, trims: bool
) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of a layer's forward pass and of its second one; `weight` gives the device."""
    forward, again = nullcontext(), nullcontext()
    if recompute == "cheap":
        forward, again = create_selective_checkpoint_contexts(_policy)
    return forward, _after_trimming(again) if trims and weight.is_cpu else again


@contextmanager
def _after_trimming(inner: AbstractContextManager) -> Iterator[None]:
    # The head and later layers have freed memory between tensors that stay. "cheap" trims only twice a step, soon after
    # the head's backward pass and half way, because pages come back one by one.
    return_free_memory()
    with inner:
        yield


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operation in _PRODUCTS:
        inner, columns = args[_PRODUCTS[operation] + 1].shape
        keep = columns <= inner
    else:
        # Dropout too, where it is one operation: attention that is kept draws no random numbers in the second pass, so
        # that all later draws would differ.
        keep = any(name in operation.name() for name in ("attention", "varlen_attn", "native_dropout"))
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
