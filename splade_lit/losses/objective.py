"""The loss of a run: a weighted sum of parts, made of flat settings or of objects that a YAML file names."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from splade_lit.core.errors import UserError
from splade_lit.core.ranges import check_range
from splade_lit.losses.citation import Citation, PartFacts
from splade_lit.losses.part import Part, Step, plain
from splade_lit.losses.penalties import PENALTIES, L0Mask, Penalty, PenaltyName
from splade_lit.losses.ranking import RANKING, RankingLoss, RankingName
from splade_lit.losses.weights import Ramp, Schedule, Weight


@dataclass(frozen=True)
class Losses:
    """The loss of a batch and what it is made of.

    Attributes:
        loss: the weighted sum, scalar.
        values: ranking losses and penalties by name, without their weights.
        weights: weights of the penalties by name, at this step.
    """

    loss: Tensor
    values: dict[str, Tensor]
    weights: dict[str, float | Tensor]


class Objective(nn.Module):
    """`sum_r w_r ranking_r + lambda_d * penalty(documents) + lambda_q * penalty(queries)`.

    Args:
        ranking: ranking losses, by their short names or as objects.
        penalty: penalty on activations, likewise.
        lambda_d: weight of the penalty on documents; a number rises as the schedule says.
        lambda_q: weight of the penalty on queries; they have none if this is 0.
        lambda_schedule: how weights that are numbers rise.
        lambda_ramp_ratio: fraction of all optimizer steps until they are reached.
        l0_threshold: leave documents with this many active dims or fewer out of the penalty; none if not given.

    Attributes:
        settings: the arguments as plain values.

    Raises:
        UserError: a setting is out of range, or two parts have the same name.
    """

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
        super().__init__()
        numbers = [None if isinstance(value, Weight) else value for value in (lambda_d, lambda_q)]
        check_range("model", 0, l0_threshold=l0_threshold, lambda_d=numbers[0], lambda_q=numbers[1])
        check_range("model", 0, 1, lambda_ramp_ratio=lambda_ramp_ratio)
        self.settings: dict[str, Any] = {
            "ranking": plain(ranking),
            "penalty": plain(penalty),
            "lambda_d": plain(lambda_d),
            "lambda_q": plain(lambda_q),
            "lambda_schedule": lambda_schedule,
            "lambda_ramp_ratio": lambda_ramp_ratio,
            "l0_threshold": l0_threshold,
        }

        def as_weight(value: float | Weight) -> Weight:
            return value if isinstance(value, Weight) else Ramp(value, lambda_schedule, lambda_ramp_ratio)

        self.ranking = nn.ModuleList(_named(one, RANKING) for one in ranking)
        on_queries = cast(Penalty, _named(penalty, PENALTIES))
        on_documents = on_queries if l0_threshold is None else L0Mask(on_queries, l0_threshold)
        self.penalties = nn.ModuleDict({"document": on_documents})
        self.weights = nn.ModuleDict({"document": as_weight(lambda_d)})
        if lambda_q != 0:
            self.penalties["query"] = copy.deepcopy(on_queries)  # with a state of its own
            self.weights["query"] = as_weight(lambda_q)
        if not self.ranking:
            raise UserError("model.ranking is empty; name a ranking loss, such as in_batch.")
        names = ["loss", *self.parts]
        if len(names) < 1 + len(self.ranking) + 2 * len(self.penalties) or "loss" in self.parts:
            raise UserError(f"Parts of the loss must have different names, but are {', '.join(names)}; set `name`.")

    @property
    def parts(self) -> dict[str, Part]:
        """All parts by their names in the log."""
        parts: dict[str, Any] = dict(self.ranking_losses)
        parts |= {f"{side}_{penalty.name}": penalty for side, penalty in self.penalties.items()}
        return parts | {_lambda(side): weight for side, weight in self.weights.items()}

    @property
    def ranking_losses(self) -> dict[str, RankingLoss]:
        """The ranking losses by their names in the log."""
        return {part.name: part for part in cast(Iterable[RankingLoss], self.ranking)}

    def facts(self) -> list[PartFacts]:
        """What a model card says of the parts."""
        return [
            PartFacts(name, "" if isinstance(part, Weight) else part.tag, list(_citations(part)))
            for name, part in self.parts.items()
        ]

    def prepare(self, vocab_size: int) -> None:
        """Give all parts the size of the vectors."""
        for part in self.modules():
            if isinstance(part, Part):
                part.prepare(vocab_size)

    def forward(self, step: Step) -> Losses:
        """The loss of a batch.

        Raises:
            UserError: a part gives anything but a scalar.
        """
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
            weights[_lambda(side)] = weight.weight(step.step, step.total_steps)
            loss = loss + weights[_lambda(side)] * value
        return Losses(loss, values, weights)


def _named(part: Any, classes: Mapping[Any, type[Part]]) -> Part:
    if isinstance(part, Part):
        return part
    return classes[part]()


def _lambda(side: str) -> str:
    return f"lambda_{side[0]}"


def _citations(part: Part) -> dict[Citation, None]:
    parts = (one for one in part.modules() if isinstance(one, Part))
    return dict.fromkeys(citation for one in parts for citation in one.citations)


def _scalar(part: nn.Module, value: Tensor) -> Tensor:
    if value.ndim:
        raise UserError(f"{type(part).__name__} gave values of shape {list(value.shape)}; a loss is a scalar.")
    return value
