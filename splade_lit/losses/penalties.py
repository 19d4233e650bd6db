"""Penalties on activations that make vectors sparse. All in fp32: an untrained model's can exceed what fp16 holds."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from splade_lit.core.ranges import check_range
from splade_lit.losses.citation import Citation
from splade_lit.losses.part import Part, Step

PenaltyName = Literal["flops", "l1"]

_PARIA_2020 = """\
@misc{paria2020minimizing,
    title = {Minimizing FLOPs to Learn Efficient Sparse Representations},
    author = {Paria, Biswajit and Yeh, Chih-Kuan and Yen, Ian E. H. and Xu, Ning and Ravikumar, Pradeep
        and P{\\'o}czos, Barnab{\\'a}s},
    year = {2020},
    eprint = {2004.05665},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2004.05665},
}"""
_SHEN_2025 = """\
@misc{shen2025exploring,
    title = {Exploring $\\ell_0$ Sparsification for Inference-free Sparse Retrievers},
    author = {Shen, Xinjie and Geng, Zhichao and Yang, Yang},
    year = {2025},
    eprint = {2504.14839},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2504.14839},
}"""


def flops_penalty(embeddings: Float[Tensor, "batch vocab"]) -> Float[Tensor, ""]:
    """Sum over the vocabulary of the squared mean activation: `sum_j (mean_i d_ij)^2` (Paria et al. 2020).

    It stands in for the expected multiplications of a search, which `evaluation.sparsity.expected_flops` measures.

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


def l0_mask(embeddings: Float[Tensor, "batch vocab"], threshold: int) -> Float[Tensor, "batch vocab"]:
    """The embeddings with rows of `threshold` active dims or fewer set to zero (Shen et al. 2025, "l0 mask").

    A penalty on the result spares what is sparse enough; such rows still count in its mean.

    >>> l0_mask(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), threshold=1)
    tensor([[1., 2.],
            [0., 0.]])
    """
    return embeddings * ((embeddings != 0).sum(1, keepdim=True) > threshold)


class Penalty(Part):
    """A penalty on activations; subclasses define `forward(vectors, step)`.

    It gets the vectors of all documents of a batch; if queries are penalised too, a copy gets the mean of the query
    vectors as a batch of one. In the log it is `document_NAME` and `query_NAME`.
    """

    def forward(self, vectors: Float[Tensor, "batch vocab"], step: Step) -> Float[Tensor, ""]:
        """The penalty on a batch of vectors, without its weight."""
        raise NotImplementedError


class Flops(Penalty):
    """Squared mean activations, summed over the vocabulary; see `flops_penalty`."""

    name = "penalty"
    tag = "FlopsLoss"
    citations = (Citation("FLOPS Penalty", _PARIA_2020),)

    def forward(self, vectors: Float[Tensor, "batch vocab"], step: Step) -> Float[Tensor, ""]:
        """The penalty on a batch of vectors, without its weight."""
        return flops_penalty(vectors)


class L1(Penalty):
    """Sum of absolute activations, mean over the batch; see `l1_penalty`."""

    name = "penalty"

    def forward(self, vectors: Float[Tensor, "batch vocab"], step: Step) -> Float[Tensor, ""]:
        """The penalty on a batch of vectors, without its weight."""
        return l1_penalty(vectors)


class L0Mask(Penalty):
    """A penalty that leaves out vectors which are sparse enough; see `l0_mask`.

    Args:
        penalty: the penalty on the others.
        threshold: active dims that are few enough.
    """

    citations = (Citation("l0 Mask", _SHEN_2025),)

    def __init__(self, penalty: Penalty, threshold: int) -> None:
        super().__init__()
        check_range("L0Mask", 0, threshold=threshold)
        self.name, self.tag = penalty.name, penalty.tag
        self.penalty = penalty
        self.threshold = threshold

    def forward(self, vectors: Float[Tensor, "batch vocab"], step: Step) -> Float[Tensor, ""]:
        """The penalty on a batch of vectors, without its weight."""
        return self.penalty(l0_mask(vectors, self.threshold), step)


PENALTIES: dict[PenaltyName, type[Penalty]] = {"flops": Flops, "l1": L1}
