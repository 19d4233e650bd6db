"""Losses, penalties and schedules: equal to sentence-transformers' and transformers', and in fp32 whatever comes in."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from splade_lit.core.errors import UserError
from splade_lit.losses.objective import Objective
from splade_lit.losses.part import Step
from splade_lit.losses.penalties import L1, Flops, L0Mask, Penalty, flops_penalty, l0_mask, l1_penalty
from splade_lit.losses.ranking import InBatch, RankingLoss, in_batch_ranking_loss
from splade_lit.losses.weights import Ramp, Weight, learning_rate_factor, penalty_factor


@pytest.fixture
def peer():
    """The losses of sentence-transformers."""
    return pytest.importorskip("sentence_transformers.sparse_encoder.losses")


def sparse_vectors(rows: int, vocab: int = 40, seed: int = 0, active: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(rows, vocab, generator=generator) * 3
    return values * (torch.rand(rows, vocab, generator=generator) < active)


def diagonal(size: int) -> Tensor:
    """Document i answers query i."""
    return torch.arange(size).repeat(2, 1).T


def gradient(loss: Tensor, vectors: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(loss, vectors, retain_graph=True)
    return grad


@pytest.mark.parametrize("num_negatives", [0, 1, 3])
def test_ranking_loss_equals_the_peers(peer, num_negatives):
    queries = sparse_vectors(6, seed=1).requires_grad_()
    columns = [sparse_vectors(6, seed=2 + i).requires_grad_() for i in range(1 + num_negatives)]
    ours = in_batch_ranking_loss(queries @ torch.cat(columns).T, diagonal(6))
    expected = peer.SparseMultipleNegativesRankingLoss(None).compute_loss_from_embeddings([queries, *columns], None)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    for leaf in (queries, *columns):
        torch.testing.assert_close(gradient(ours, leaf), gradient(expected, leaf), rtol=1e-5, atol=1e-7)


def test_hard_negatives_count_for_every_query():
    scores = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    harder = torch.cat([scores, torch.tensor([[5.0, -100.0], [-100.0, -100.0]])], dim=1)
    expected = torch.stack(
        [torch.log(torch.exp(torch.tensor([2.0, 0.0, 5.0])).sum()) - 2, torch.log1p(torch.exp(torch.tensor(-2.0)))]
    )
    torch.testing.assert_close(in_batch_ranking_loss(harder, diagonal(2)), expected.mean())


def test_ranking_loss_of_large_scores_is_finite():
    scores = torch.tensor([[3e4, -3e4], [3e4, -3e4]])
    assert in_batch_ranking_loss(scores, diagonal(2)).item() == pytest.approx(3e4)


@pytest.mark.parametrize("threshold", [None, 0, 11, 40])
def test_flops_penalty_equals_the_peers(peer, threshold):
    documents = sparse_vectors(8)
    documents[3] = 0
    documents.requires_grad_()
    ours = flops_penalty(documents if threshold is None else l0_mask(documents, threshold))
    expected = peer.FlopsLoss(None, threshold=threshold).compute_loss_from_embeddings(documents)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient(ours, documents), gradient(expected, documents), rtol=1e-6, atol=0)
    if threshold == 11:  # masks some rows and not others
        assert 0 < ours < flops_penalty(documents)


def test_l1_penalty_is_the_mean_one_norm():
    documents = torch.cat([sparse_vectors(8), -sparse_vectors(2, seed=5)]).requires_grad_()
    expected = torch.linalg.vector_norm(documents, ord=1, dim=1).mean()
    torch.testing.assert_close(l1_penalty(documents), expected)
    torch.testing.assert_close(gradient(l1_penalty(documents), documents), gradient(expected, documents))


def test_l0_mask_counts_negative_values_as_active():
    documents = torch.tensor([[1.0, -2.0, 0.0], [-1.0, 0.0, 0.0]])
    torch.testing.assert_close(l0_mask(documents, 1), torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_out_in_fp32(dtype):
    documents = (sparse_vectors(8) * 100).to(dtype)
    assert documents.float().mean(0).square().sum() > torch.finfo(torch.float16).max
    for penalty in (flops_penalty, l1_penalty):
        assert penalty(documents).dtype == torch.float32
        torch.testing.assert_close(penalty(documents), penalty(documents.float()), rtol=0, atol=0)
    assert l0_mask(documents, 3).dtype == dtype
    scores = (sparse_vectors(4) @ sparse_vectors(6).T).to(dtype)
    loss = in_batch_ranking_loss(scores, diagonal(4))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, in_batch_ranking_loss(scores.float(), diagonal(4)), rtol=0, atol=0)


def test_double_precision_stays():
    documents = sparse_vectors(8).double()
    assert flops_penalty(documents).dtype == l1_penalty(documents).dtype == torch.float64
    assert in_batch_ranking_loss(documents @ documents.T, diagonal(8)).dtype == torch.float64


@pytest.mark.parametrize("schedule", ["quadratic", "linear"])
@pytest.mark.parametrize(("total_steps", "ratio"), [(1, 1 / 3), (20, 1 / 3), (200, 1 / 3), (37, 0.5), (10, 1.0)])
def test_penalty_weights_equal_the_peers(peer, schedule, total_steps, ratio):
    from sentence_transformers.sparse_encoder.callbacks.splade_callbacks import SpladeRegularizerWeightSchedulerCallback

    ranking = peer.SparseMultipleNegativesRankingLoss(None)
    loss = peer.SpladeLoss(None, ranking, document_regularizer_weight=3e-3, query_regularizer_weight=5e-4)
    callback = SpladeRegularizerWeightSchedulerCallback(loss, schedule, ratio)
    state = SimpleNamespace(max_steps=total_steps, global_step=0)
    callback.on_train_begin(None, state, None)
    for step in range(total_steps):
        state.global_step = step
        callback.on_step_begin(None, state, None)
        factor = penalty_factor(step, max(1, int(total_steps * ratio)), schedule)
        assert factor * 3e-3 == pytest.approx(loss.document_regularizer_weight, rel=1e-12)
        assert factor * 5e-4 == pytest.approx(loss.query_regularizer_weight, rel=1e-12)


def test_constant_penalty_weight():
    assert [penalty_factor(step, 5, "constant") for step in (0, 1, 5, 100)] == [1.0] * 4


@settings(deadline=None, database=None)
@given(warmup_steps=st.integers(0, 50), total_steps=st.integers(1, 200))
def test_learning_rates_equal_transformers(warmup_steps, total_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup_steps, total_steps)
    for step in range(total_steps + 2):
        expected = scheduler.lr_lambdas[0](step)
        assert learning_rate_factor(step, warmup_steps, total_steps) == pytest.approx(expected, abs=1e-12)


def a_step(scores: Tensor, answers: list[tuple[int, int]], documents: Tensor | None = None) -> Step:
    documents = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]]) if documents is None else documents
    mean_query = torch.tensor([0.5, 1.0, 0.0])
    return Step(scores, torch.tensor(answers), documents, mean_query, step=1, total_steps=6)


def test_several_answers_do_not_compete_with_each_other():
    """Query 0 has answers 0 and 2, query 1 has 1; document 3 answers none."""
    scores = torch.tensor([[1.0, 0.5, 2.0, -1.0], [0.0, 1.5, 0.5, 3.0]])
    answers = torch.tensor([[0, 0], [0, 2], [1, 1]])
    by_hand = [
        -1.0 + math.log(math.exp(1.0) + math.exp(0.5) + math.exp(-1.0)),
        -2.0 + math.log(math.exp(2.0) + math.exp(0.5) + math.exp(-1.0)),
        -1.5 + math.log(math.exp(0.0) + math.exp(1.5) + math.exp(0.5) + math.exp(3.0)),
    ]
    assert float(in_batch_ranking_loss(scores, answers)) == pytest.approx(sum(by_hand) / 3)
    step = a_step(scores, answers.tolist(), torch.ones(4, 3))
    assert step.answer_scores.tolist() == [1.0, 2.0, 1.5]
    assert step.answer_mask.int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]


def test_answers_may_lie_anywhere():
    """As where documents are gathered from several devices, and this one's come last."""
    scores = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    rolled = torch.cat([scores[:, 3:], scores[:, :3]], dim=1)
    answers = diagonal(3) + torch.tensor([0, 9])
    torch.testing.assert_close(in_batch_ranking_loss(rolled, answers), in_batch_ranking_loss(scores, diagonal(3)))


def test_parts_by_hand():
    step = a_step(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), [(0, 0), (1, 1)])
    assert float(InBatch()(step)) == pytest.approx(math.log(1 + math.exp(-2)))
    assert float(Flops()(step.documents, step)) == 5.0  # (4 / 2)^2 + (2 / 2)^2
    assert float(L1()(step.documents, step)) == 3.0  # (3 + 3) / 2
    assert float(L0Mask(Flops(), 1)(step.documents, step)) == 1.25  # (1 / 2)^2 + (2 / 2)^2: the second row is left out
    assert [Ramp(0.9, ramp_ratio=0.5).weight(step, 6) for step in range(5)] == pytest.approx([0, 0.1, 0.4, 0.9, 0.9])
    assert Ramp(0.9, "linear", 0.5).weight(1, 6) == pytest.approx(0.3)


def test_the_objective_is_the_weighted_sum():
    step = a_step(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), [(0, 0), (1, 1)])
    ranking, flops_of_queries = math.log(1 + math.exp(-2)), 0.5**2 + 1.0**2
    losses = Objective([InBatch(weight=0.5)], "flops", 0.1, Ramp(0.2, "constant"), "linear", 0.5, l0_threshold=1)(step)
    expected = {"ranking_loss": ranking, "document_penalty": 1.25, "query_penalty": flops_of_queries}
    assert {name: float(value) for name, value in losses.values.items()} == pytest.approx(expected)
    assert losses.weights == pytest.approx({"lambda_d": 0.1 / 3, "lambda_q": 0.2})
    assert float(losses.loss) == pytest.approx(0.5 * ranking + 0.1 / 3 * 1.25 + 0.2 * flops_of_queries)


def test_short_names_make_the_same_objective_as_classes():
    short = Objective(penalty="l1", lambda_d=0.1, l0_threshold=3)
    whole = Objective([InBatch()], L0Mask(L1(), 3), Ramp(0.1))
    assert [*short.parts] == [*whole.parts]
    assert [part.settings for part in short.parts.values()] == [part.settings for part in whole.parts.values()]
    assert short.facts() == whole.facts()


class Seen(Penalty):
    """Counts the batches that it sees in training, in a buffer."""

    def prepare(self, vocab_size: int) -> None:
        self.register_buffer("seen", torch.zeros(vocab_size))

    def forward(self, vectors: Tensor, step: Step) -> Tensor:
        self.seen += self.training
        return vectors.mean()


class Grows(Weight):
    """Grows with each batch that it observes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.ones(()))

    def observe(self, step: Step) -> None:
        self.value += 1

    def weight(self, step: int, total_steps: int) -> Tensor:
        return self.value.clone()


def test_weights_of_penalties_are_lowered_together():
    objective = Objective(lambda_d=0.4, lambda_q=0.2, lambda_schedule="constant")
    step = a_step(torch.eye(2), [(0, 0), (1, 1)])
    before = objective(step)
    objective.lower_penalties(0.5)
    objective.lower_penalties(0.5)
    after = objective(step)
    assert {name: float(weight) for name, weight in after.weights.items()} == pytest.approx(
        {"lambda_d": 0.1, "lambda_q": 0.05}
    )
    ranking = before.values["ranking_loss"]
    assert float(after.loss - ranking) == pytest.approx(float(before.loss - ranking) / 4, rel=1e-5)


def test_parts_keep_a_state_of_their_own():
    objective = Objective(penalty=Seen(), lambda_d=Grows(), lambda_q=0.1)
    objective.prepare(3)
    step = a_step(torch.eye(2), [(0, 0), (1, 1)])
    assert float(objective(step).weights["lambda_d"]) == 2
    assert float(objective.eval()(step).weights["lambda_d"]) == 2  # held-out pairs are not observed
    state = objective.state_dict()
    names = {"penalties.document.seen", "penalties.query.seen", "weights.document.value", "penalty_scale"}
    assert state.keys() == names
    assert [state[f"penalties.{side}.seen"].tolist() for side in ("document", "query")] == [[1.0] * 3] * 2
    assert objective.settings["penalty"] == {"class_path": f"{__name__}.Seen", "init_args": {"weight": None}}


class Keepless(Penalty):
    """Does not keep its setting."""

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()


class Vector(RankingLoss):
    """Gives a loss a query."""

    def forward(self, step: Step) -> Tensor:
        return step.scores.logsumexp(1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ranking": []}, "model.ranking is empty"),
        (
            {"ranking": ["in_batch", InBatch()]},
            "must have different names, but are loss, ranking_loss, document_penalty",
        ),
        ({"penalty": Keepless()}, "Keepless must keep its setting power as self.power"),
        ({"lambda_d": -1.0}, "model.lambda_d is -1.0; it must be at least 0."),
        ({"lambda_q": math.nan}, "model.lambda_q is nan"),
        ({"lambda_d": math.inf}, "model.lambda_d is inf"),
        ({"lambda_ramp_ratio": 2.0}, "model.lambda_ramp_ratio is 2.0; it must be from 0 to 1."),
        ({"l0_threshold": -1}, "model.l0_threshold is -1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_of_the_objective_out_of_range(settings, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        Objective(**settings)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: InBatch(-1.0), "InBatch.weight is -1.0"),
        (lambda: L0Mask(Flops(), -1), "L0Mask.threshold is -1"),
        (lambda: Ramp(-0.1), "Ramp.value is -0.1"),
        (lambda: Ramp(0.1, ramp_ratio=-0.1), "Ramp.ramp_ratio is -0.1; it must be from 0 to 1."),
    ],
)
def test_settings_of_parts_out_of_range(make, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        make()


def test_a_loss_that_is_no_scalar_is_refused():
    with pytest.raises(UserError, match=re.escape("Vector gave values of shape [2]; a loss is a scalar.")):
        Objective([Vector()])(a_step(torch.eye(2), [(0, 0), (1, 1)]))


def test_names_tags_and_citations_of_parts():
    facts = {part.name: part for part in Objective([InBatch(), Vector()], Seen(), l0_threshold=3).facts()}
    assert [*facts] == ["ranking_loss", "vector", "document_seen", "lambda_d"]
    assert [part.tag for part in facts.values()] == ["SparseMultipleNegativesRankingLoss", "Vector", "Seen", ""]
    titles = {name: [citation.title for citation in part.citations] for name, part in facts.items()}
    assert titles == {"ranking_loss": ["Ranking Loss"], "vector": [], "document_seen": ["l0 Mask"], "lambda_d": []}
