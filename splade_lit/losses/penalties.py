"""Penalties on activations that make vectors sparse. All in fp32: an untrained model's can exceed what fp16 holds."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Penalty = Literal["flops", "l1"]


def flops_penalty(embeddings: Float[Tensor, "batch vocab"]) -> Float[Tensor, ""]:
    """Sum over the vocabulary of the squared mean activation: `sum_j (mean_i d_ij)^2` (Paria et al. 2020).

    A smooth stand-in for the expected number of multiplications of a search; not to be mixed up with
    `splade_lit.evaluation.sparsity.expected_flops`, which is measured.

    >>> flops_penalty(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    tensor(4.)
    """
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)).mean(0).square().sum()


def l1_penalty(embeddings: Float[Tensor, "batch vocab"]) -> Float[Tensor, ""]:
    """Mean over the batch of the sum of absolute activations.

    >>> l1_penalty(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    tensor(2.)
    """
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)).abs().sum(1).mean()


PENALTIES: dict[Penalty, Callable[[Tensor], Tensor]] = {"flops": flops_penalty, "l1": l1_penalty}


def l0_mask(embeddings: Float[Tensor, "batch vocab"], threshold: int) -> Float[Tensor, "batch vocab"]:
    """The embeddings with rows of `threshold` active dims or fewer set to zero (Shen et al. 2025, "l0 mask").

    A penalty on the result leaves alone what is sparse enough; such rows still count in the penalty's mean.

    >>> l0_mask(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), threshold=1)
    tensor([[1., 2.],
            [0., 0.]])
    """
    dense = (embeddings != 0).sum(1, keepdim=True) > threshold
    return embeddings * dense
