"""The loss of a run: a weighted sum of parts, made of flat settings or of objects that a YAML file names."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from splade_lit.core.errors import UserError
from splade_lit.core.ranges import check_range
from splade_lit.losses.citation import PartFacts
from splade_lit.losses.distillation import KLDivergence, MarginMSE
from splade_lit.losses.part import Part, Step, plain
from splade_lit.losses.penalties import PENALTIES, L0Mask, Penalty, PenaltyName
from splade_lit.losses.ranking import InBatch, RankingLoss
from splade_lit.losses.weights import Ramp, Schedule, Weight

RankingName = Literal["in_batch", "kl", "margin_mse"]
RANKING: dict[RankingName, type[RankingLoss]] = {"in_batch": InBatch, "kl": KLDivergence, "margin_mse": MarginMSE}


@dataclass(frozen=True)
class Losses:
    """The loss of a batch: the weighted sum, its parts by name without their weights, and weights of penalties."""

    loss: Tensor
    values: dict[str, Tensor]
    weights: dict[str, float | Tensor]


class Objective(nn.Module):
    """`sum_r w_r ranking_r + lambda_d * penalty(documents) + lambda_q * penalty(queries)`.

    `SpladeModule` has the same settings and says what they mean; `settings` has them as plain values. A UserError says
    that one is out of range, or that two parts have the same name.
    """

    penalty_scale: Tensor

    def __init__(
        self,
        ranking: Sequence[RankingLoss | RankingName] = ("in_batch",),
        penalty: Penalty | PenaltyName = "flops",
        lambda_d: float | Weight = 3e-3,
        lambda_q: float | Weight = 0.0,
        lambda_schedule: Schedule = "quadratic",
        lambda_ramp_ratio: float = 1 / 3,
        l0_threshold: int | None = None,
    ) -> None:
        arguments = dict(locals())
        super().__init__()
        self.settings = {name: plain(arguments[name]) for name in signature(Objective).parameters}
        check_range("model", 0, l0_threshold=l0_threshold)
        check_range("model", 0, 1, lambda_ramp_ratio=lambda_ramp_ratio)

        def as_weight(name: str, value: float | Weight) -> Weight:
            if isinstance(value, Weight):
                return value
            check_range("model", 0, **{name: value})
            return Ramp(value, lambda_schedule, lambda_ramp_ratio)

        self.ranking = nn.ModuleList(RANKING[one]() if isinstance(one, str) else one for one in ranking)
        on_queries = PENALTIES[penalty]() if isinstance(penalty, str) else penalty
        on_documents = on_queries if l0_threshold is None else L0Mask(on_queries, l0_threshold)
        self.penalties = nn.ModuleDict({"document": on_documents})
        self.weights = nn.ModuleDict({"document": as_weight("lambda_d", lambda_d)})
        if lambda_q != 0:
            self.penalties["query"] = copy.deepcopy(on_queries)  # with a state of its own
            self.weights["query"] = as_weight("lambda_q", lambda_q)
        if not self.ranking:
            raise UserError("model.ranking is empty; name a ranking loss, such as in_batch.")
        # Lowered by a guard where penalties leave documents no active dims.
        self.register_buffer("penalty_scale", torch.ones(()))
        names = ["loss", *self.parts]
        if len(names) < 1 + len(self.ranking) + 2 * len(self.penalties) or "loss" in self.parts:
            raise UserError(f"Parts of the loss must have different names, but are {', '.join(names)}; set `name`.")

    @property
    def parts(self) -> dict[str, Part]:
        """All parts by their names in the log."""
        parts: dict[str, Any] = dict(self.ranking_losses)
        parts |= {f"{side}_{penalty.name}": penalty for side, penalty in self.penalties.items()}
        return parts | {f"lambda_{side[0]}": weight for side, weight in self.weights.items()}

    @property
    def ranking_losses(self) -> dict[str, RankingLoss]:
        """The ranking losses by their names in the log."""
        return {part.name: part for part in cast(Iterable[RankingLoss], self.ranking)}

    @property
    def teacher_losses(self) -> list[str]:
        """Names of the ranking losses that need the scores of a teacher."""
        return [name for name, part in self.ranking_losses.items() if part.needs_teacher]

    def facts(self) -> list[PartFacts]:
        """What a model card says of the parts."""
        facts = []
        for name, part in self.parts.items():
            citations = [one for inner in part.modules() if isinstance(inner, Part) for one in inner.citations]
            tag = "" if isinstance(part, Weight) else part.tag
            facts.append(PartFacts(name, tag, list(dict.fromkeys(citations))))
        return facts

    def prepare(self, vocab_size: int) -> None:
        """Give all parts the size of the vectors."""
        for part in self.modules():
            if isinstance(part, Part):
                part.prepare(vocab_size)

    def lower_penalties(self, factor: float) -> None:
        """Multiply the weights of all penalties from now on, in later steps and in runs that are resumed."""
        self.penalty_scale.mul_(factor)

    def forward(self, step: Step) -> Losses:
        """The loss of a batch; a UserError if a part gives anything but a scalar."""
        values: dict[str, Tensor] = {}
        weights: dict[str, float | Tensor] = {}
        loss = step.scores.new_zeros(())
        for name, ranking in self.ranking_losses.items():
            values[name] = _scalar(ranking, ranking(step))
            loss = loss + ranking.weight * values[name]
        for side in self.penalties:
            penalty, weight = cast(Penalty, self.penalties[side]), cast(Weight, self.weights[side])
            vectors = step.documents if side == "document" else step.mean_query[None]
            value = values[f"{side}_{penalty.name}"] = _scalar(penalty, penalty(vectors, step))
            if self.training:
                weight.observe(step)
            now = weight.weight(step.step, step.total_steps) * self.penalty_scale
            weights[f"lambda_{side[0]}"] = now
            loss = loss + now * value
        return Losses(loss, values, weights)


def _scalar(part: nn.Module, value: Tensor) -> Tensor:
    if value.ndim:
        raise UserError(f"{type(part).__name__} gave values of shape {list(value.shape)}; a loss is a scalar.")
    return value
