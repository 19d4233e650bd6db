"""The loss of a run: a weighted sum of parts, made of flat settings or of objects that a YAML file names."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from splade_lit.core.errors import UserError
from splade_lit.core.ranges import check_range
from splade_lit.losses.citation import PartFacts
from splade_lit.losses.distillation import KLDivergence, MarginMSE
from splade_lit.losses.part import Part, Step, plain
from splade_lit.losses.penalties import PENALTIES, Flops, L0Mask, Penalty, PenaltyName, as_penalties, name_apart
from splade_lit.losses.ranking import InBatch, RankingLoss
from splade_lit.losses.targets import LEAST_FLOPS, ActiveDimsTarget, FlopsTarget, Target
from splade_lit.losses.weights import Ramp, Schedule, Weight

RankingName = Literal["in_batch", "kl", "margin_mse"]
RANKING: dict[RankingName, type[RankingLoss]] = {"in_batch": InBatch, "kl": KLDivergence, "margin_mse": MarginMSE}
REFERENCE_LAMBDA_D = 3e-3


@dataclass(frozen=True)
class Losses:
    """The loss of a batch.

    Attributes:
        loss: the weighted sum.
        values: its parts by name, without their weights.
        weights: the weights of penalties by name.
        figures: what else weights say of themselves, by name.
    """

    loss: Tensor
    values: dict[str, Tensor]
    weights: dict[str, float | Tensor]
    figures: dict[str, Tensor] = field(default_factory=dict)


class _Weighed(NamedTuple):
    """A weight with its name in the log, and what it weighs by the names in the log, on one side of the batch."""

    name: str
    side: str
    weight: float | Weight
    penalties: dict[str, Penalty]


class Objective(nn.Module):
    """`sum_r w_r ranking_r + lambda_d * penalty(documents) + lambda_q * penalty(queries)`.

    `SpladeModule` has the same settings and says what they mean; `settings` has them as plain values. A UserError says
    that one is out of range, that two contradict each other, or that two parts have the same name.
    """

    penalty_scale: Tensor

    def __init__(
        self,
        ranking: Sequence[RankingLoss | RankingName] = ("in_batch",),
        penalty: Penalty | PenaltyName | Sequence[Penalty | PenaltyName] = "flops",
        lambda_d: float | Weight | None = None,
        lambda_q: float | Weight = 0.0,
        lambda_schedule: Schedule = "quadratic",
        lambda_ramp_ratio: float = 1 / 3,
        l0_threshold: int | None = None,
        target_active_dims: int | None = None,
        target_flops: float | None = None,
        flops_idf_power: float = 0.0,
    ) -> None:
        arguments = dict(locals())
        super().__init__()
        self.settings = {name: plain(arguments[name]) for name in signature(Objective).parameters}
        check_range("model", 0, l0_threshold=l0_threshold)
        check_range("model", 0, 1, lambda_ramp_ratio=lambda_ramp_ratio)
        check_range("model", 1, target_active_dims=target_active_dims)
        check_range("model", LEAST_FLOPS, target_flops=target_flops)
        _check_one("lambda_d", "target_active_dims", "target_flops", settings=self.settings)
        needs_shared = {
            "lambda_d": lambda_d is not None,
            "target_active_dims": target_active_dims is not None,
            "target_flops": target_flops is not None,
            "lambda_q": lambda_q != 0,
            "l0_threshold": l0_threshold is not None,
        }

        def as_weight(name: str, value: float | Weight) -> Weight:
            if isinstance(value, Weight):
                return value
            check_range("model", 0, **{name: value})
            return Ramp(value, lambda_schedule, lambda_ramp_ratio)

        def as_penalty(value: Penalty | PenaltyName) -> Penalty:
            if value == "flops":
                return Flops(flops_idf_power)
            return PENALTIES[value]() if isinstance(value, str) else value

        def masked(one: Penalty) -> Penalty:
            return one if l0_threshold is None or one.weight is not None else L0Mask(one, l0_threshold)

        self.ranking = nn.ModuleList(RANKING[one]() if isinstance(one, str) else one for one in ranking)
        if not self.ranking:
            raise UserError("model.ranking is empty; name a ranking loss, such as in_batch.")
        # Lowered by a guard where penalties leave documents no active dims.
        self.register_buffer("penalty_scale", torch.ones(()))
        penalties = as_penalties(penalty)
        if not penalties:
            raise UserError(
                "model.penalty is empty; name a penalty, such as flops, and set model.lambda_d to 0 for none."
            )
        if flops_idf_power and "flops" not in penalties:
            raise UserError(
                "model.flops_idf_power is of the penalty flops; name it in model.penalty, or leave this out."
            )
        on_documents = [as_penalty(one) for one in penalties]
        name_apart(on_documents)
        shared = [one for one in on_documents if one.weight is None]
        if not shared and any(needs_shared.values()):
            name = next(name for name, given in needs_shared.items() if given)
            raise UserError(
                f"model.{name} has no effect, as every penalty in model.penalty has a weight of its own; leave out the "
                "weight of one, or this."
            )
        if target_active_dims is not None:
            lambda_d = ActiveDimsTarget(target_active_dims)
        elif target_flops is not None:
            lambda_d = FlopsTarget(target_flops)
        elif lambda_d is None:
            lambda_d = REFERENCE_LAMBDA_D
            self.settings["lambda_d"] = lambda_d if shared else None
        self.weights = nn.ModuleDict({"document": as_weight("lambda_d", lambda_d)})
        sides = {"document": [masked(one) for one in on_documents]}
        if lambda_q != 0:
            self.weights["query"] = as_weight("lambda_q", lambda_q)
            sides["query"] = [copy.deepcopy(one) for one in shared]  # with a state of their own
        # Named so in checkpoints.
        self.penalties = nn.ModuleDict(
            {f"{side}_{i}" if i else side: one for side, all_of in sides.items() for i, one in enumerate(all_of)}
        )
        for weighed in self._weighed:
            if isinstance(weighed.weight, ActiveDimsTarget):
                _check_mask(weighed.weight.active_dims, list(weighed.penalties.values()))
        names = ["loss", *(one.name for one in cast(Iterable[RankingLoss], self.ranking))]
        names += [f"{side}_{one.name}" for side, all_of in sides.items() for one in all_of]
        names += [one.name for one in self._weighed]
        if len(set(names)) < len(names):
            listed = ", ".join(dict.fromkeys(names))
            raise UserError(f"Parts of the loss must have different names, but are {listed}; set `name`.")

    @property
    def _weighed(self) -> list[_Weighed]:
        """Penalties with their weights: those that share one by side, then those that have one of their own."""
        weighed = []
        for side, weight in self.weights.items():
            penalties = [cast(Penalty, one) for key, one in self.penalties.items() if key.partition("_")[0] == side]
            shared = {f"{side}_{one.name}": one for one in penalties if one.weight is None}
            if shared:
                weighed.append(_Weighed(f"lambda_{side[0]}", side, cast(Weight, weight), shared))
            for one in penalties:
                if one.weight is not None:
                    name = f"{side}_{one.name}"
                    weighed.append(_Weighed(f"lambda_{side[0]}_{one.name}", side, one.weight, {name: one}))
        return weighed

    @property
    def parts(self) -> dict[str, Part]:
        """All parts by their names in the log; a weight of its own that is a number is none."""
        weighed = self._weighed
        parts: dict[str, Any] = dict(self.ranking_losses)
        parts |= {name: penalty for one in weighed for name, penalty in one.penalties.items()}
        return parts | {one.name: one.weight for one in weighed if isinstance(one.weight, Weight)}

    @property
    def logged_names(self) -> list[str]:
        """Names of all that `Losses` holds, but for the loss itself."""
        figures = [f"{one.name}_{name}" for one in self._weighed for name in _figures(one.weight)]
        return list(dict.fromkeys([*self.parts, *(one.name for one in self._weighed), *figures]))

    @property
    def ranking_losses(self) -> dict[str, RankingLoss]:
        """The ranking losses by their names in the log."""
        return {part.name: part for part in cast(Iterable[RankingLoss], self.ranking)}

    @property
    def targets(self) -> list[Target]:
        """The controllers among the weights."""
        return [one for one in self.modules() if isinstance(one, Target)]

    @property
    def target_active_dims(self) -> int | None:
        """The active dims that a controller aims at, if there is one."""
        return next((one.active_dims for one in self.targets if isinstance(one, ActiveDimsTarget)), None)

    def check_frozen(self, idf_weights: Tensor) -> None:
        """Raise a UserError if a penalty asks how query weights differ, `[vocab]`, and these are all equal and stay."""
        if any(isinstance(one, Flops) and one.idf_power for one in self.modules()) and len(idf_weights.unique()) == 1:
            raise UserError(
                "model.flops_idf_power has no effect on query weights that are all equal and stay so; set model.idf to "
                "corpus, or model.freeze_idf to false."
            )

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
        figures: dict[str, Tensor] = {}
        loss = step.scores.new_zeros(())
        for name, ranking in self.ranking_losses.items():
            values[name] = _scalar(ranking, ranking(step))
            loss = loss + ranking.weight * values[name]
        of_ranking = loss.detach()
        for weighed in self._weighed:
            vectors = step.documents if weighed.side == "document" else step.mean_query[None]
            of_penalties = {name: _scalar(one, one(vectors, step)) for name, one in weighed.penalties.items()}
            value = torch.stack([*of_penalties.values()]).sum()
            lowered = [one.makes_sparse for one in weighed.penalties.values()]
            scales = [self.penalty_scale if one else torch.ones_like(self.penalty_scale) for one in lowered]
            weight = weighed.weight
            if isinstance(weight, Weight) and self.training:
                weight.observe(replace(step, ranking=of_ranking, penalty=value.detach()))
            now = weight.weight(step.step, step.total_steps) if isinstance(weight, Weight) else weight
            values |= of_penalties
            weights[weighed.name] = now * self.penalty_scale if all(lowered) else now
            figures |= {f"{weighed.name}_{name}": figure for name, figure in _figures(weighed.weight).items()}
            loss = loss + now * (torch.stack([*of_penalties.values()]) * torch.stack(scales)).sum()
        return Losses(loss, values, weights, figures)


def _figures(weight: float | Weight) -> dict[str, Tensor]:
    return weight.figures if isinstance(weight, Weight) else {}


def _check_one(*names: str, settings: Mapping[str, Any]) -> None:
    """Raise a UserError if more than one of these settings is given."""
    given = [f"model.{name}" for name in names if settings[name] is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are both given; give one of them, and null for the other.")


def _check_mask(target: int, penalties: Sequence[Penalty]) -> None:
    """Raise a UserError if no penalty is left that takes dims from documents above the target."""
    spared = [one.threshold for one in penalties if isinstance(one, L0Mask)]
    if len(spared) == len(penalties) and min(spared) >= target:
        raise UserError(
            f"A mask (model.l0_threshold) of {min(spared)} spares documents at the target of {target} active dims, so "
            "that no penalty brings them there; give a threshold below the target, or none."
        )


def _scalar(part: nn.Module, value: Tensor) -> Tensor:
    if value.ndim:
        raise UserError(f"{type(part).__name__} gave values of shape {list(value.shape)}; a loss is a scalar.")
    return value
