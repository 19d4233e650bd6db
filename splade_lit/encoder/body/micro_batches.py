"""Large batches in the memory of small ones: documents are encoded a few at a time, twice.

Gradient caching (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"): all
vectors of a batch are made first and nothing else is kept; the loss looks at all of them and gives the gradient of
each; then each micro-batch goes through the body once more, and takes its share of the gradient back to the weights.
Gradients are those of the whole batch. One more forward pass of the body is all that it costs: what the head gave is
kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from splade_lit.core.tokens import Tokens


def encode_in_micro_batches(
    encoder: nn.Module, documents: Tokens, micro_batch_size: int | None
) -> Float[Tensor, "documents vocab"]:
    """Vectors of documents, as `torch.cat([encoder(part) for part in documents.split(micro_batch_size)])` gives them.

    Activations are kept of one micro-batch at a time, forward and backward. What is random in the encoder, such as
    dropout, is drawn in the order of that expression, and again the same when a micro-batch is encoded for the second
    time. Each parameter gets its whole gradient at once, as from one batch, so that gradients may be scaled, clipped,
    accumulated, or averaged over processes.

    Args:
        encoder: module from `Tokens` to dense vectors, as `MlmDocumentEncoder` is; given vectors that it has made
            before, it makes only their graph.
        documents: tokens of all documents.
        micro_batch_size: documents encoded at a time; all at once if None.
    """
    if micro_batch_size is None or len(documents) <= micro_batch_size:
        return encoder(documents)
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    return _MicroBatches.apply(encoder, documents.split(micro_batch_size), torch.is_grad_enabled(), *parameters)


class _MicroBatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, encoder: nn.Module, parts: Sequence[Tokens], trains: bool, *parameters: Tensor) -> Tensor:
        device = parts[0].input_ids.device
        ctx.encoder, ctx.parts, ctx.parameters = encoder, parts, parameters
        ctx.autocast = {
            "device_type": device.type,
            "enabled": torch.is_autocast_enabled(device.type),
            "dtype": torch.get_autocast_dtype(device.type),
        }
        ctx.random_states = []
        vectors: Tensor | None = None
        start = 0
        for part in parts:
            ctx.random_states.append((torch.get_rng_state(), *get_device_states(part.input_ids)))
            # As in the second pass, with a graph: without one, other kernels might run and draw other random numbers.
            with torch.set_grad_enabled(trains):
                of_part = encoder(part).detach()
            if vectors is None:  # memory for all at once, or joining them would take as much again
                vectors = of_part.new_empty(sum(map(len, parts)), *of_part.shape[1:])
            vectors[start : start + len(part)] = of_part
            start += len(part)
        assert vectors is not None
        ctx.save_for_backward(vectors)
        return vectors

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_vectors: Tensor) -> tuple[Tensor | None, ...]:
        totals: list[Tensor | None] = [None] * len(ctx.parameters)
        device_type, (_, devices, _) = ctx.autocast["device_type"], ctx.random_states[0]
        known = ctx.saved_tensors[0].detach()  # or its graph would lead back here
        start = 0
        with torch.random.fork_rng(devices, device_type=device_type):
            for part, (host_state, _, device_states) in zip(ctx.parts, ctx.random_states, strict=True):
                torch.set_rng_state(host_state)
                set_device_states(devices, device_states, device_type=device_type)
                rows = slice(start, start + len(part))
                # Autocast keeps copies of weights, and their graph, until its block ends.
                with torch.enable_grad(), torch.autocast(**ctx.autocast):
                    vectors = ctx.encoder(part, known[rows])
                grads = torch.autograd.grad(vectors, ctx.parameters, grad_vectors[rows], allow_unused=True)
                del vectors
                totals = [_sum(total, grad) for total, grad in zip(totals, grads, strict=True)]
                start += len(part)
        return None, None, None, *totals


def _sum(total: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """The sum, in the memory of the first; None is nothing."""
    if total is None or grad is None:
        return grad if total is None else total
    return total.add_(grad)
