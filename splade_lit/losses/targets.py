"""Weights of the penalty that keep documents as sparse as is wanted: a controller in place of a fixed lambda."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from splade_lit.core.ranges import check_range
from splade_lit.losses.part import Step
from splade_lit.losses.weights import Weight, penalty_factor

LEAST_FLOPS = 1e-6

# Of the controller. Steps are optimizer steps; errors, pressure and integral are logarithms. Under a fixed weight, dims
# settle where the penalty balances the ranking loss, and swing around that for some 20 steps, as Adam answers late. A
# mean of what is measured would make the weight late as well, and the swings last: each step answers the one before.
_FIRST_PRESSURE = -2.1  # of the penalty times its weight, over the ranking loss
_FORWARD, _MOST_FORWARD = 0.6, 2.0  # sparser documents need more pressure
_LEAST_PRESSURE, _MOST_PRESSURE = -12.0, 6.0
_GAIN, _MOST_RISE = 2.0, 4.0  # rises as the learning rate falls, which makes the dims slower to follow
_INTEGRAL_RATE, _INTEGRAL_RATE_OF_RUN = 0.06, 40.0  # a step, at most; and over the whole run
_FAR_BELOW, _STEEPER = 0.5, 8.0  # what is further below the path takes off so many times as much at once
_MOST_INTEGRAL = 5.0
_SHOWN_STEPS = 12.0  # of the moving mean that is told
_LEAST_RATIO = 1e-3
_LEAST_PENALTY = 1e-12
_QUERY_MEMORY = 10_000

_COUNTS = ("amount", "rows", "penalty", "ranking", "batches")
_STATE = (
    "start",
    "path",
    "shown",
    "shown_weight",
    "log_penalty_mean",
    "penalty_steps",
    "ranking_mean",
    "ranking_steps",
    "integral",
    "pressure",
)


def path_left(step: Int64[Tensor, ""], path_steps: int) -> Float[Tensor, ""]:
    """How much of the way is left, in logarithms: from 1 to 0 over `path_steps`, slow at both ends.

    >>> [float(path_left(torch.tensor(step), 4)) for step in (0, 1, 2, 4, 9)]
    [1.0, 0.84375, 0.5, 0.0, 0.0]
    """
    done = (step / max(1, path_steps)).clamp(0, 1)
    return 1 - done * done * (3 - 2 * done)


class Target(Weight):
    """A weight that brings a figure of the documents to a target and keeps it there, by what is measured in training.

    The figure m, measured on the documents of each optimizer step, shall follow a path p from where it starts, `m_0`,
    to the target g: `p(t) = g (m_0 / g)^s(t)`, s being `path_left`. A controller with proportional and integral action
    makes of the error `e = log(m / p)` the weight of the penalty P:

        weight(t) = exp(u_0 + 0.6 log(m_0 / p(t)) + k e(t) + i(t)) mean(R) / mean(P),    i(t + 1) = i(t) + r e(t)

    k and r rise as the learning rate falls. With means of the ranking loss R and of the penalty (a geometric one), any
    of them will do, however large; they are taken over all steps so far, as a mean that followed the penalty would undo
    that a penalty grows with the dims, which keeps them where they are. Where a step is more than 40 % below the path,
    the weight falls to nothing at once, before vectors die. The integral is bounded, and stands still while the weight
    is at a bound.

    Counts are summed over the batches of a step, and the weight is decided once a step, by the steps
    before: batch size and accumulation matter for the noise alone. All state is in buffers and stays on the device.

    Attributes:
        figure: what evaluations call the figure, if they measure it.
        unit: what it counts.

    Args:
        target: what the figure should be.
        path_ratio: fraction of all optimizer steps until the target is reached.
        ramp_ratio: fraction of all optimizer steps over which the weight rises from 0, as a fixed one does
            (`penalty_factor`), while the controller waits; the path starts at its end, where documents are by then.
    """

    figure: str = ""
    unit: str = ""
    amount: Tensor
    rows: Tensor
    penalty: Tensor
    ranking: Tensor
    batches: Tensor
    start: Tensor
    path: Tensor
    shown: Tensor
    shown_weight: Tensor
    log_penalty_mean: Tensor
    penalty_steps: Tensor
    ranking_mean: Tensor
    ranking_steps: Tensor
    integral: Tensor
    pressure: Tensor
    step: Tensor

    def __init__(self, target: float, path_ratio: float, ramp_ratio: float) -> None:
        super().__init__()
        check_range(type(self).__name__, 0, 1, path_ratio=path_ratio)
        check_range(type(self).__name__, 0, path_ratio, ramp_ratio=ramp_ratio)
        self.path_ratio, self.ramp_ratio = path_ratio, ramp_ratio
        self.wanted = target
        for name in (*_COUNTS, *_STATE):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("step", torch.full((), -1, dtype=torch.int64))  # that the counts are of

    def measure(self, step: Step) -> tuple[Tensor, Tensor]:
        """The figure of a batch: a sum over rows and their number, scalars in fp32."""
        raise NotImplementedError

    @torch.no_grad()
    def observe(self, step: Step) -> None:
        """Count a batch; the first batch of a step decides the weight by the steps before."""
        assert step.penalty is not None, "an objective says what the penalty is"
        assert step.ranking is not None, "an objective says what the ranking loss is"
        batch = torch.stack([*self.measure(step), step.penalty, step.ranking, torch.ones_like(step.penalty)]).detach()
        batch = torch.where(batch.isfinite().all(), batch, 0.0)  # its step is left out, too
        is_next = self.step != step.step
        for name, value in self._decide(step.total_steps).items():
            state = getattr(self, name)
            state.copy_(torch.where(is_next & (self.rows > 0), value, state))
        for name, value in zip(_COUNTS, batch, strict=True):
            count = getattr(self, name)
            count.copy_(torch.where(is_next, value, count + value))
        self.step.fill_(step.step)

    def _decide(self, total_steps: int) -> dict[str, Tensor]:
        """The state after the step that the counts are of."""
        integral_rate = min(_INTEGRAL_RATE, _INTEGRAL_RATE_OF_RUN / total_steps)
        is_first = self.start == 0
        figure = self.amount / self.rows
        ramp_steps = int(total_steps * self.ramp_ratio)
        waits = is_first | (self.step < ramp_steps)  # the path goes with what is measured, so that there is no error
        start = torch.where(waits, figure.clamp(min=_LEAST_RATIO * self.wanted), self.start)
        left = path_left((self.step - ramp_steps).clamp(min=0), int(total_steps * self.path_ratio) - ramp_steps)
        path = self.wanted * (start / self.wanted) ** left
        error = (figure / path).clamp(min=_LEAST_RATIO).log()
        ranking, ranking_steps = self.ranking / self.batches, self.ranking_steps + 1
        penalty = self.penalty / self.batches
        penalty_steps = self.penalty_steps + (penalty != 0)  # one of exactly 0 says nothing of its size
        log_penalty = penalty.abs().clamp(min=_LEAST_PENALTY).log()  # so that a dense start is forgotten
        change = (log_penalty - self.log_penalty_mean) / penalty_steps.clamp(min=1)
        kept = math.exp(-1 / _SHOWN_STEPS)
        dying = (error + _FAR_BELOW).clamp(max=0)
        rise = (total_steps / (total_steps - self.step).clamp(min=1)).clamp(max=_MOST_RISE)
        forward = _FORWARD * (start / path).log().clamp(-_MOST_FORWARD, _MOST_FORWARD)
        wanted = _FIRST_PRESSURE + forward + self.integral + _GAIN * rise * error + _STEEPER * dying
        at_bound = torch.where(error > 0, wanted > _MOST_PRESSURE, wanted < _LEAST_PRESSURE)
        integral = self.integral + torch.where(at_bound, 0.0, integral_rate * rise * error)
        return {
            "start": start,
            "path": path,
            "shown": kept * self.shown + (1 - kept) * figure,
            "shown_weight": kept * self.shown_weight + (1 - kept),
            "log_penalty_mean": self.log_penalty_mean + torch.where(penalty != 0, change, 0.0),
            "penalty_steps": penalty_steps,
            "ranking_mean": self.ranking_mean + (ranking - self.ranking_mean) / ranking_steps,
            "ranking_steps": ranking_steps,
            "integral": integral.clamp(-_MOST_INTEGRAL, _MOST_INTEGRAL),
            "pressure": wanted.clamp(_LEAST_PRESSURE, _MOST_PRESSURE),
        }

    def weight(self, step: int, total_steps: int) -> Tensor:
        """The weight after `step` of a run's `total_steps` optimizer steps; 0 until a penalty has been measured."""
        ramp = penalty_factor(step, max(1, int(total_steps * self.ramp_ratio)))
        weight = (self.pressure - self.log_penalty_mean).exp() * self.ranking_mean.abs() * ramp
        return torch.where((self.start > 0) & (self.penalty_steps > 0), weight, 0.0)

    @property
    def figures(self) -> dict[str, Tensor]:
        """Where the path is, a moving mean of the figure over some 12 steps, and the integral."""
        measured = torch.where(self.shown_weight > 0, self.shown / self.shown_weight, 0.0)
        return {"path": self.path.clone(), "measured": measured, "integral": self.integral.clone()}


class ActiveDimsTarget(Target):
    """A weight under which documents have so many active dims on average; `Target` says how it is found.

    Counted are the documents of training batches, hard negatives among them.

    Args:
        active_dims: of a document, on average.
        path_ratio: fraction of all optimizer steps until the target is reached.
        ramp_ratio: fraction of all optimizer steps over which the weight rises from 0, as a fixed one does; the path
            starts at its end.
    """

    figure, unit = "corpus_active_dims", "active dims"

    def __init__(self, active_dims: int, path_ratio: float = 0.25, ramp_ratio: float = 0.0) -> None:
        check_range("ActiveDimsTarget", 1, active_dims=active_dims)
        super().__init__(float(active_dims), path_ratio, ramp_ratio)
        self.active_dims = active_dims

    def measure(self, step: Step) -> tuple[Tensor, Tensor]:
        """Active dims of all documents of a batch, and how many documents these are."""
        active = (step.documents != 0).sum().float()
        return active, torch.full_like(active, len(step.documents))


class FlopsTarget(Target):
    """A weight under which a query and a document share so many dims on average: `sum_j p_q(j) p_d(j)`.

    It is the figure of `evaluation.sparsity.expected_flops`, what a search costs. `Target` says how the weight is
    found. Within a batch queries go with their answers and share far more dims; so `p_d` is of the documents of a batch
    and `p_q` of the queries of earlier batches, each of which counts less by a factor e^(-1/10,000) for every later
    query.

    Args:
        flops: dims that a query and a document share, on average.
        path_ratio: fraction of all optimizer steps until the target is reached.
        ramp_ratio: fraction of all optimizer steps over which the weight rises from 0, as a fixed one does; the path
            starts at its end.
    """

    figure, unit = "avg_flops", "FLOPS"
    queries_with: Tensor
    queries_seen: Tensor

    def __init__(self, flops: float, path_ratio: float = 0.25, ramp_ratio: float = 0.0) -> None:
        check_range("FlopsTarget", LEAST_FLOPS, flops=flops)
        super().__init__(flops, path_ratio, ramp_ratio)
        self.flops = flops

    def prepare(self, vocab_size: int) -> None:
        """Make the table of how many queries have each dim."""
        self.register_buffer("queries_with", torch.zeros(vocab_size))
        self.register_buffer("queries_seen", torch.zeros(()))

    def measure(self, step: Step) -> tuple[Tensor, Tensor]:
        """Dims that documents of a batch share with an earlier query, and how many documents these are."""
        assert step.idf_weights is not None, "a step in training has the table of query weights"
        query_shares = self.queries_with / self.queries_seen.clamp(min=1)
        shared = (step.documents != 0).sum(0).float() @ query_shares
        rows = torch.where(self.queries_seen > 0, float(len(step.documents)), 0.0)
        shares: Float[Tensor, " vocab"] = torch.where(step.idf_weights != 0, step.mean_query / step.idf_weights, 0.0)
        counts = torch.cat([shares, torch.ones_like(shares[:1])]) * len(step.scores)
        kept = torch.exp(-counts[-1] / _QUERY_MEMORY)
        self.queries_with.mul_(kept).add_(counts[:-1])
        self.queries_seen.mul_(kept).add_(counts[-1])
        return shared, rows
