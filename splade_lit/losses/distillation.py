"""Ranking losses that learn from the scores of a teacher; pairs that it has not scored (NaN) are left out."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from splade_lit.core.errors import UserError
from splade_lit.core.ranges import check_range
from splade_lit.losses.citation import Citation
from splade_lit.losses.part import Step
from splade_lit.losses.ranking import RankingLoss

_HOFSTAETTER_2020 = """\
@misc{hofstaetter2020improving,
    title = {Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation},
    author = {Hofst{\\"a}tter, Sebastian and Althammer, Sophia and Schr{\\"o}der, Michael and Sertkan, Mete
        and Hanbury, Allan},
    year = {2020},
    eprint = {2010.02666},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2010.02666},
}"""
_LIN_2020 = """\
@misc{lin2020distilling,
    title = {Distilling Dense Representations for Ranking using Tightly-Coupled Teachers},
    author = {Lin, Sheng-Chieh and Yang, Jheng-Hong and Lin, Jimmy},
    year = {2020},
    eprint = {2010.11386},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2010.11386},
}"""


def kl_divergence_loss(
    scores: Float[Tensor, "queries documents"],
    teacher_scores: Float[Tensor, "queries documents"],
    student_temperature: float = 2.0,
    teacher_temperature: float = 2.0,
) -> Float[Tensor, ""]:
    """Mean over queries of `KL(teacher || student) * student_temperature^2` (Lin et al. 2020, Hinton et al. 2015).

    Both distributions are the softmax of a query's scores, divided by a temperature, over the documents that the
    teacher has scored for it. Queries with fewer than two such documents have nothing to tell and are left out; without
    any other the loss is 0. On scores of one positive and the same number of negatives for each query it equals
    sentence-transformers' SparseDistillKLDivLoss. Computed in fp32 at least.

    >>> kl_divergence_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 1.0, 1.0)
    tensor(1.5232)
    >>> kl_divergence_loss(torch.tensor([[2.0, 5.0, 0.0]]), torch.tensor([[3.0, torch.nan, 1.0]]))
    tensor(0.)
    """
    scores, teacher_scores = _in_fp32(scores), _in_fp32(teacher_scores).detach()
    scored = ~torch.isnan(teacher_scores)
    used = scored.sum(1) > 1
    # Rows that are not used become constant, so that no softmax is taken of nothing.
    outside, unused = ~scored & used[:, None], ~used[:, None]

    def log_softmax(values: Tensor, temperature: float) -> Tensor:
        return torch.log_softmax((values / temperature).masked_fill(outside, -torch.inf).masked_fill(unused, 0), dim=1)

    student, teacher = log_softmax(scores, student_temperature), log_softmax(teacher_scores, teacher_temperature)
    terms = (teacher.exp() * (teacher - student)).masked_fill(outside | unused, 0)
    return terms.sum() / used.sum().clamp(min=1) * student_temperature**2


def margin_mse_loss(
    scores: Float[Tensor, "queries documents"],
    teacher_scores: Float[Tensor, "queries documents"],
    answers: Int64[Tensor, "answers 2"],
) -> Float[Tensor, ""]:
    """Mean of `((S_ia - S_ij) - (T_ia - T_ij))^2` over answers (i, a) and other documents j (Hofstaetter et al. 2020).

    Pairs (i, a) and (i, j) are those that the teacher has scored; without one the loss is 0. On scores of one positive
    and the same number of negatives for each query it equals sentence-transformers' SparseMarginMSELoss. Computed in
    fp32 at least.

    >>> margin_mse_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 4.0]]), torch.tensor([[0, 0]]))
    tensor(1.)
    """
    scores, teacher_scores = _in_fp32(scores), _in_fp32(teacher_scores).detach()
    queries, documents = answers[:, 0], answers[:, 1]
    targets = teacher_scores[queries, documents][:, None] - teacher_scores[queries]
    used = ~torch.isnan(targets)
    used[torch.arange(len(answers), device=scores.device), documents] = False
    margins = scores[queries, documents][:, None] - scores[queries]
    errors = (margins - targets.nan_to_num()).masked_fill(~used, 0)
    return errors.square().sum() / used.sum().clamp(min=1)


def _in_fp32(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


class DistillationLoss(RankingLoss):
    """A loss that looks at the scores of a teacher too; subclasses define `forward(step)`.

    Args:
        weight: factor of this loss in the sum.
    """

    needs_teacher = True

    def teacher_scores(self, step: Step) -> Float[Tensor, "queries documents"]:
        """The teacher's scores of a batch; a UserError if there are none."""
        if step.teacher_scores is None:
            raise UserError(
                f"{self.name} learns from a teacher, but the batches have no scores of one; set data.teacher, or "
                "data.score_columns for pairs that have been scored."
            )
        return step.teacher_scores


class KLDivergence(DistillationLoss):
    """KL divergence from the teacher's distribution over the documents of a query; see `kl_divergence_loss`.

    Args:
        temperature: by which scores of student and teacher are divided; the higher, the more the documents that score
            low count.
        student_temperature: that of the student, if another.
        teacher_temperature: that of the teacher, if another.
        weight: factor of this loss in the sum.
    """

    tag = "SparseDistillKLDivLoss"
    name = "kl_divergence"
    citations = (Citation("KL Divergence Loss", _LIN_2020),)

    def __init__(
        self,
        temperature: float = 2.0,
        student_temperature: float | None = None,
        teacher_temperature: float | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        check_range("KLDivergence", 1e-6, temperature=temperature, student_temperature=student_temperature)
        check_range("KLDivergence", 1e-6, teacher_temperature=teacher_temperature)
        self.temperature = temperature
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature

    def forward(self, step: Step) -> Float[Tensor, ""]:
        """The loss of a batch, without its weight."""
        temperatures = self.student_temperature or self.temperature, self.teacher_temperature or self.temperature
        return kl_divergence_loss(step.scores, self.teacher_scores(step), *temperatures)


class MarginMSE(DistillationLoss):
    """Squared difference of the student's margins from the teacher's; see `margin_mse_loss`.

    Args:
        teacher_scale: factor of the teacher's scores, whose margins the student is to have.
        weight: factor of this loss in the sum.
    """

    tag = "SparseMarginMSELoss"
    citations = (Citation("MarginMSE Loss", _HOFSTAETTER_2020),)

    def __init__(self, teacher_scale: float = 1.0, weight: float = 1.0) -> None:
        super().__init__(weight)
        check_range("MarginMSE", 0, teacher_scale=teacher_scale)
        self.teacher_scale = teacher_scale

    def forward(self, step: Step) -> Float[Tensor, ""]:
        """The loss of a batch, without its weight."""
        return margin_mse_loss(step.scores, self.teacher_scores(step) * self.teacher_scale, step.answers)
