"""Losses, penalties and schedules: equal to sentence-transformers' and transformers', and in fp32 whatever comes in."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from splade_lit.losses.penalties import flops_penalty, l0_mask, l1_penalty
from splade_lit.losses.ranking import in_batch_ranking_loss
from splade_lit.losses.weights import learning_rate_factor, penalty_factor


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
