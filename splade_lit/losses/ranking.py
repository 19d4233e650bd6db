"""Ranking losses over the scores of a batch."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from splade_lit.core.ranges import check_range
from splade_lit.losses.citation import Citation
from splade_lit.losses.part import Part, Step, answer_mask

_HENDERSON_2017 = """\
@misc{henderson2017efficient,
    title = {Efficient Natural Language Response Suggestion for Smart Reply},
    author = {Henderson, Matthew and Al-Rfou, Rami and Strope, Brian and Sung, Yun-hsuan and Luk{\\'a}cs,
        L{\\'a}szl{\\'o} and Guo, Ruiqi and Kumar, Sanjiv and Miklos, Balint and Kurzweil, Ray},
    year = {2017},
    eprint = {1705.00652},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/1705.00652},
}"""


def in_batch_ranking_loss(
    scores: Float[Tensor, "queries documents"], answers: Int64[Tensor, "answers 2"]
) -> Float[Tensor, ""]:
    """Mean over answers (i, a) of `logsumexp_j S_ij - S_ia`: cross-entropy with all other documents as negatives.

    Hard negatives of one query are negatives of all (Henderson et al. 2017; sentence-transformers'
    MultipleNegativesRankingLoss with scale 1). Where a query has several answers, the others are left out of j.
    Computed in fp32 at least.

    >>> in_batch_ranking_loss(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([[0, 0], [1, 1]]))
    tensor(0.1269)
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    queries, documents = answers[:, 0], answers[:, 1]
    others = answer_mask(scores, answers)[queries]
    others[torch.arange(len(answers), device=scores.device), documents] = False
    denominators = torch.logsumexp(scores[queries].masked_fill(others, -torch.inf), dim=1)
    return (denominators - scores[queries, documents]).mean()


class RankingLoss(Part):
    """A loss that looks at the scores of a batch; subclasses define `forward(step)`.

    Args:
        weight: factor of this loss in the sum.

    Attributes:
        needs_teacher: whether it looks at `step.teacher_scores`; a run without them is then refused before it starts.
    """

    needs_teacher: bool = False

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        check_range(type(self).__name__, 0, weight=weight)
        self.weight = weight

    def forward(self, step: Step) -> Float[Tensor, ""]:
        """The loss of a batch, without its weight."""
        raise NotImplementedError


class InBatch(RankingLoss):
    """Cross-entropy of each answer against all other documents of the batch; see `in_batch_ranking_loss`.

    Args:
        weight: factor of this loss in the sum.
    """

    name = "ranking_loss"
    tag = "SparseMultipleNegativesRankingLoss"
    citations = (Citation("Ranking Loss", _HENDERSON_2017),)

    def forward(self, step: Step) -> Float[Tensor, ""]:
        """The loss of a batch, without its weight."""
        return in_batch_ranking_loss(step.scores, step.answers)
