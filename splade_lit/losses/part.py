"""What the loss is made of: parts that a YAML file can name, and the record of a step that they look at."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from splade_lit.core.errors import UserError
from splade_lit.losses.citation import Citation


@dataclass(frozen=True)
class Step:
    """A batch as the parts of the loss see it, in fp32 whatever the precision of the run.

    Attributes:
        answers: which document answers which query: pairs of row numbers (query, document). A query may have several
            answers; documents that answer no query are negatives of all.
        mean_query: mean of the query vectors. A penalty that looks at means or sums is the same on this one vector as
            on all of them, so that `[queries, vocab]` is never made.
        step: optimizer steps done, of `total_steps` of the whole run.
        teacher_scores: what a teacher gives for `scores`, where there is one; NaN for pairs that it has not scored.
        idf_weights: the table of query weights as it is now; `mean_query` over it is the share of queries with a dim.
        ranking: for the weight of a penalty, which is asked for last: the weighted sum of the ranking losses.
        penalty: likewise the value of that penalty, or the sum of several that share the weight.
    """

    scores: Float[Tensor, "queries documents"]
    answers: Int64[Tensor, "answers 2"]
    documents: Float[Tensor, "documents vocab"]
    mean_query: Float[Tensor, " vocab"]
    step: int
    total_steps: int
    teacher_scores: Float[Tensor, "queries documents"] | None = None
    idf_weights: Float[Tensor, " vocab"] | None = None
    ranking: Float[Tensor, ""] | None = None
    penalty: Float[Tensor, ""] | None = None

    @property
    def answer_scores(self) -> Float[Tensor, " answers"]:
        """The score of each answer with its query."""
        return self.scores[self.answers[:, 0], self.answers[:, 1]]

    @property
    def answer_mask(self) -> Bool[Tensor, "queries documents"]:
        """Whether a document answers a query."""
        return answer_mask(self.scores, self.answers)


def answer_mask(
    scores: Float[Tensor, "queries documents"], answers: Int64[Tensor, "answers 2"]
) -> Bool[Tensor, "queries documents"]:
    """Whether a document answers a query.

    >>> answer_mask(torch.zeros(2, 3), torch.tensor([[0, 0], [1, 2]]))
    tensor([[ True, False, False],
            [False, False,  True]])
    """
    mask = torch.zeros_like(scores, dtype=torch.bool, requires_grad=False)
    return mask.index_put((answers[:, 0], answers[:, 1]), mask.new_ones(()))


class Part(nn.Module):
    """A part of the objective: a ranking loss, a penalty, or the weight of a penalty.

    Its settings are the arguments of `__init__`, each kept as an attribute of the same name: YAML files give them,
    checkpoints and model cards show them. What it learns is in parameters, which are trained in a group of their own;
    what it keeps from step to step is in buffers, so that a resumed run goes on with it.

    Attributes:
        name: its column in the log; by default made of the class name: `my_loss` for `MyLoss`.
        tag: what stands after `loss:` in the tags of a model card; by default the class name.
        citations: what a model card cites for it.
    """

    name: str
    tag: str
    citations: tuple[Citation, ...] = ()

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        cls.name, cls.tag = cls.__dict__.get("name", cls.class_name()), cls.__dict__.get("tag", cls.__name__)

    @classmethod
    def class_name(cls) -> str:
        """The name of the class as a column in the log."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that it was made with, as plain values; a UserError if the class does not keep one."""
        arguments = signature(type(self)).parameters.values()
        names = [one.name for one in arguments if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        if lost := next((name for name in names if not hasattr(self, name)), None):
            raise UserError(f"{_path(self)} must keep its setting {lost} as self.{lost}, for checkpoint and card.")
        return {name: plain(getattr(self, name)) for name in names}

    def prepare(self, vocab_size: int) -> None:
        """Make what needs the size of the vectors, such as a table in a buffer; called once, before training."""


def plain(value: Any) -> Any:
    """A setting as a YAML file has it: parts become class paths with their settings, tensors numbers.

    >>> plain((1, torch.tensor([0.5])))
    [1, [0.5]]
    """
    if isinstance(value, Part):
        return {"class_path": _path(value), "init_args": value.settings}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _path(part: Part) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"
