"""Penalties on activations that make vectors sparse. All in fp32: an untrained model's can exceed what fp16 holds."""

import math
from collections.abc import Sequence
from itertools import chain, count
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from splade_lit.core.errors import UserError
from splade_lit.core.ranges import check_range
from splade_lit.losses.citation import Citation
from splade_lit.losses.part import Part, Step
from splade_lit.losses.weights import Weight

PenaltyName = Literal["flops", "l1", "df_flops", "anti_zero"]

_ZAMANI_2018 = """\
@inproceedings{zamani2018neural,
    title = {From Neural Re-Ranking to Neural Ranking: Learning a Sparse Representation for Inverted Indexing},
    author = {Zamani, Hamed and Dehghani, Mostafa and Croft, W. Bruce and Learned-Miller, Erik and Kamps, Jaap},
    booktitle = {Proceedings of the 27th ACM International Conference on Information and Knowledge Management},
    year = {2018},
}"""
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

_GENG_2024 = """\
@misc{geng2024competitive,
    title = {Towards Competitive Search Relevance For Inference-Free Learned Sparse Retrievers},
    author = {Geng, Zhichao and Wang, Yiwen and Ru, Dongyu and Yang, Yang},
    year = {2024},
    eprint = {2411.04403},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2411.04403},
}"""
_PORCO_2025 = """\
@misc{porco2025alternative,
    title = {An Alternative to FLOPS Regularization to Effectively Productionize SPLADE-Doc},
    author = {Porco, Aldo and Mehra, Dhruv and Malioutov, Igor and Radhakrishnan, Karthik and Keymanesh, Moniba
        and Preo{\\c{t}}iuc-Pietro, Daniel and MacAvaney, Sean and Cheng, Pengxiang},
    year = {2025},
    eprint = {2505.15070},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2505.15070},
}"""
_NAVER_SPLADE = """\
@misc{naver2021splade,
    title = {SPLADE: Sparse Lexical and Expansion Model for First Stage Ranking, source code},
    author = {{NAVER Labs Europe}},
    year = {2021},
    url = {https://github.com/naver/splade},
}"""

_SMALLEST_IDF = 0.01  # weights below, negative ones too, count as this much
_SMALLEST_SHARE = 1e-6
_LARGEST_POWER = 10.0


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


def idf_shares(
    embeddings: Float[Tensor, "batch vocab"], idf_weights: Float[Tensor, " vocab"], power: float
) -> Float[Tensor, " vocab"]:
    """Weights of dims that make the FLOPS penalty cost `idf^power` times as much in each: `c idf_j^power`, detached.

    The factor c keeps the whole penalty, `sum_j c idf_j^power (mean_i d_ij)^2`, as large as without weights, so that
    the power only moves the penalty from dim to dim. Weights below 0.01 count as 0.01.

    >>> idf_shares(torch.ones(2, 2), torch.tensor([1.0, 3.0]), power=1.0)
    tensor([0.5000, 1.5000])
    """
    costs = embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32)).mean(0).square()
    # In logarithms, and the largest 1, so that no power is too large.
    logs = power * idf_weights.detach().to(costs.dtype).clamp(min=_SMALLEST_IDF).log()
    weights = (logs - logs.max()).exp()
    return weights * (costs.sum() / (weights @ costs).clamp(min=torch.finfo(costs.dtype).tiny))


def df_activation(shares: Float[Tensor, " vocab"], half_share: float, steepness: float) -> Float[Tensor, " vocab"]:
    """How much DF-FLOPS minds a dim: `1 / (1 + (x^(log_a 2) - 1)^b)` for a dim of document share x (Porco et al. 2025).

    It is 1 for a dim of all documents, 0.5 at x = a (`half_share`), and falls to 0 below it, the more abruptly the
    larger b (`steepness`) is.

    >>> df_activation(torch.tensor([0.0, 0.1, 1.0]), half_share=0.1, steepness=10.0).round(decimals=4)
    tensor([0.0000, 0.5000, 1.0000])
    """
    # x^(log_a 2) = e^z; log(e^z - 1) by expm1 of -z, which does not overflow where x is small.
    z = math.log(2) / math.log(half_share) * shares.clamp(_SMALLEST_SHARE, 1).log()
    return torch.sigmoid(-steepness * (z + (-torch.expm1(-z)).log()))


def anti_zero_penalty(
    mean_query: Float[Tensor, " vocab"], mean_document: Float[Tensor, " vocab"], smallest: float
) -> Float[Tensor, ""]:
    """`1 / (sum(q)^2 + s^2) + 1 / (sum(d)^2 + s^2)` of the mean query and document, with s = `smallest`.

    NAVER's term without the s, which bounds it by `2 / s^2` and its gradient by `0.65 / s^3`.

    >>> anti_zero_penalty(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0]), smallest=0.0)
    tensor(0.3125)
    """
    sums = torch.stack([mean_query.sum(), mean_document.sum()])
    return (1 / (sums.square() + smallest**2)).sum()


class Penalty(Part):
    """A penalty on activations; subclasses define `forward(vectors, step)`.

    It gets the vectors of all documents of a batch; if queries are penalised too, a copy gets the mean of the query
    vectors as a batch of one. In the log it is `document_NAME` and `query_NAME`.

    Attributes:
        makes_sparse: whether it is what a guard lowers where vectors have become too sparse.

    Args:
        weight: a weight of its own, a number or a class that decides it step by step, for the documents' penalty. If
            not given, it is `lambda_d`, or what a target makes of it, on documents, and `lambda_q` on queries.
    """

    makes_sparse: bool = True
    weight: float | Weight | None

    def __init__(self, weight: float | Weight | None = None) -> None:
        super().__init__()
        if not isinstance(weight, Weight):
            check_range(type(self).__name__, 0, weight=weight)
        self.weight = weight

    def forward(self, vectors: Float[Tensor, "batch vocab"], step: Step) -> Float[Tensor, ""]:
        """The penalty on a batch of vectors, without its weight."""
        raise NotImplementedError


class Flops(Penalty):
    """Squared mean activations, summed over the vocabulary; see `flops_penalty`.

    A mean over few documents is noisier, and its square larger: of batches of 16 the penalty is larger than of batches
    of 64 by the same model, so that a fixed weight does more. A target makes up for that by itself.

    Args:
        idf_power: each dim's part is taken times `idf_weights^idf_power`, scaled so that the whole stays as large; see
            `idf_shares`. Above 0, rare terms cost more and documents keep more common ones; below 0, common terms cost
            more, so that their postings are shorter. 0 is the plain penalty.
        weight: a weight of its own, in place of `lambda_d`.
    """

    name = "penalty"

    def __init__(self, idf_power: float = 0.0, weight: float | Weight | None = None) -> None:
        super().__init__(weight)
        check_range("Flops", -_LARGEST_POWER, _LARGEST_POWER, idf_power=idf_power)
        self.idf_power = idf_power
        self.tag = "IdfFlopsLoss" if idf_power else "FlopsLoss"
        self.citations = (Citation("FLOPS Penalty", _PARIA_2020),)
        if idf_power:
            self.citations += (Citation("IDF Weights", _GENG_2024),)

    def forward(self, vectors: Float[Tensor, "batch vocab"], step: Step) -> Float[Tensor, ""]:
        """The penalty on a batch of vectors, without its weight."""
        if not self.idf_power:
            return flops_penalty(vectors)
        assert step.idf_weights is not None, "a step in training has the table of query weights"
        return flops_penalty(vectors * idf_shares(vectors, step.idf_weights, self.idf_power).sqrt())


class L1(Penalty):
    """Sum of absolute activations, mean over the batch (Zamani et al. 2018); it does not depend on the batch size.

    Args:
        weight: a weight of its own, in place of `lambda_d`.
    """

    name = "penalty"
    citations = (Citation("L1 Penalty", _ZAMANI_2018),)

    def forward(self, vectors: Float[Tensor, "batch vocab"], step: Step) -> Float[Tensor, ""]:
        """The penalty on a batch of vectors, without its weight."""
        return l1_penalty(vectors)


class DfFlops(Penalty):
    """FLOPS on dims that many documents have: `sum_t ((w_t / N) sum_i r_it)^2`, DF-FLOPS (Porco et al. 2025).

    `w_t` is `df_activation` of the share of documents that dim t is active in. Shares are those of the last documents
    seen in training, whatever the batch size: each counts less by a factor `e^(-1 / memory)` for every later one. They
    are in the checkpoint. On queries (`lambda_q`), too, it minds dims of many documents.

    Args:
        half_share: share of documents at which a dim counts half: `a` of the paper.
        steepness: how abruptly rarer dims count less: `b` of the paper.
        memory: documents over which shares are averaged.
        weight: a weight of its own, in place of `lambda_d`.
    """

    tag = "DfFlopsLoss"
    citations = (Citation("FLOPS Penalty", _PARIA_2020), Citation("DF-FLOPS Penalty", _PORCO_2025))
    documents_with: Tensor
    documents_seen: Tensor

    def __init__(
        self,
        half_share: float = 0.1,
        steepness: float = 10.0,
        memory: int = 1_000,
        weight: float | Weight | None = None,
    ) -> None:
        super().__init__(weight)
        check_range("DfFlops", 0.001, 0.999, half_share=half_share)
        check_range("DfFlops", 0.1, 100, steepness=steepness)
        check_range("DfFlops", 1, memory=memory)
        self.half_share = half_share
        self.steepness = steepness
        self.memory = memory

    def prepare(self, vocab_size: int) -> None:
        """Make the table of document frequencies."""
        self.register_buffer("documents_with", torch.zeros(vocab_size))
        self.register_buffer("documents_seen", torch.zeros(()))

    def forward(self, vectors: Float[Tensor, "batch vocab"], step: Step) -> Float[Tensor, ""]:
        """The penalty on a batch of vectors, without its weight; in training its documents are counted first."""
        with torch.no_grad():
            if self.training:
                counts = (step.documents != 0).float()
                counts = torch.cat([counts.sum(0), counts.new_tensor([len(counts)])])
                kept = torch.exp(-counts[-1] / self.memory)
                self.documents_with.mul_(kept).add_(counts[:-1])
                self.documents_seen.mul_(kept).add_(counts[-1])
            shares = self.documents_with / self.documents_seen.clamp(min=1)
            weights = df_activation(shares, self.half_share, self.steepness)
        return flops_penalty(vectors * weights)


class AntiZero(Penalty):
    """Keeps vectors from dying: large where the mean query or document is nearly 0; see `anti_zero_penalty`.

    It is no penalty that makes vectors sparse, and stands beside one. It cannot bring a document back that is all 0, as
    nothing has a gradient there. Sums are of means over the batch, so that its size does not matter.

    Args:
        smallest: sum of activations below which it does not grow much further.
        weight: its weight; the term is below 0.1 as long as no side is near 0.
    """

    makes_sparse = False
    citations = (Citation("Anti-Zero Term", _NAVER_SPLADE),)

    def __init__(self, smallest: float = 0.3, weight: float | Weight | None = 1.0) -> None:
        super().__init__(weight)
        check_range("AntiZero", 0.01, smallest=smallest)
        self.smallest = smallest

    def forward(self, vectors: Float[Tensor, "batch vocab"], step: Step) -> Float[Tensor, ""]:
        """The term of a batch, without its weight."""
        return anti_zero_penalty(step.mean_query, vectors.mean(0), self.smallest)


class L0Mask(Penalty):
    """A penalty that leaves out vectors which are sparse enough; see `l0_mask`.

    Args:
        penalty: the penalty on the others.
        threshold: active dims that are few enough.
        weight: a weight of its own, in place of `lambda_d`.
    """

    citations = (Citation("l0 Mask", _SHEN_2025),)

    def __init__(self, penalty: Penalty, threshold: int, weight: float | Weight | None = None) -> None:
        super().__init__(weight)
        check_range("L0Mask", 0, threshold=threshold)
        if penalty.weight is not None:
            raise UserError("L0Mask.penalty has a weight of its own, which has no effect; give it to L0Mask.")
        self.name, self.tag, self.makes_sparse = penalty.name, penalty.tag, penalty.makes_sparse
        self.penalty = penalty
        self.threshold = threshold

    def forward(self, vectors: Float[Tensor, "batch vocab"], step: Step) -> Float[Tensor, ""]:
        """The penalty on a batch of vectors, without its weight."""
        return self.penalty(l0_mask(vectors, self.threshold), step)


PENALTIES: dict[PenaltyName, type[Penalty]] = {
    "flops": Flops,
    "l1": L1,
    "df_flops": DfFlops,
    "anti_zero": AntiZero,
}


def name_apart(penalties: Sequence[Penalty]) -> None:
    """Name each penalty whose name an earlier one has by its class, and by a number where that is taken too.

    Changed in place; names of the first ones stay, which logs of before have.

    >>> penalties = [Flops(), L0Mask(L1(), 3), DfFlops(), DfFlops(memory=9)]
    >>> name_apart(penalties)
    >>> [one.name for one in penalties]
    ['penalty', 'l1', 'df_flops', 'df_flops_2']
    """
    taken = set[str]()
    for one in penalties:
        if one.name in taken:
            of_class = (one.penalty if isinstance(one, L0Mask) else one).class_name()
            names = chain([of_class], (f"{of_class}_{number}" for number in count(2)))
            one.name = next(name for name in names if name not in taken)
        taken.add(one.name)


def as_penalties(setting: Any) -> list[Any]:
    """The setting `penalty` as a list; what is in it is not checked.

    >>> as_penalties("flops")
    ['flops']
    """
    return [setting] if isinstance(setting, Penalty | str) else list(setting)
