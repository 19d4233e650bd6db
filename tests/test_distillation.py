"""Losses that learn from a teacher: equal to sentence-transformers', and what they do where a score is missing."""

import json

import lightning as L
import pytest
import torch
from tiny_runs import NEGATIVES, make_data, make_trainer, named_weights, save_base, write_pairs
from torch import Tensor

from splade_lit.core.errors import UserError
from splade_lit.losses.distillation import KLDivergence, MarginMSE, kl_divergence_loss, margin_mse_loss
from splade_lit.losses.objective import Objective
from splade_lit.losses.part import Step
from splade_lit.training.module import SpladeModule

QUERIES = 5


@pytest.fixture
def peer():
    """The losses of sentence-transformers."""
    return pytest.importorskip("sentence_transformers.sparse_encoder.losses")


def vectors(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(QUERIES, 30, generator=generator) * 2
    return (values * (torch.rand(values.shape, generator=generator) < 0.3)).requires_grad_()


def columns(num_negatives: int) -> list[Tensor]:
    return [vectors(2 + column) for column in range(1 + num_negatives)]


def labels(num_negatives: int) -> Tensor:
    """A teacher's scores of each query's own documents, `[queries, documents of a query]`."""
    return torch.randn(QUERIES, 1 + num_negatives, generator=torch.Generator().manual_seed(9)) * 4


def teacher_scores(labels: Tensor) -> Tensor:
    """The same for a batch: document `column * queries + i` is the one of query i, and no other pair is scored."""
    scores = torch.full((QUERIES, labels.numel()), torch.nan)
    for column in range(labels.shape[1]):
        scores[range(QUERIES), range(column * QUERIES, (column + 1) * QUERIES)] = labels[:, column]
    return scores


def step(scores: Tensor, teacher: Tensor | None, answers: Tensor | None = None) -> Step:
    answers = torch.arange(len(scores)).repeat(2, 1).T if answers is None else answers
    documents = torch.ones(scores.shape[1], 3)
    return Step(scores, answers, documents, documents.mean(0), 0, 1, teacher)


def check_equal(ours: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    gradients = (torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (ours, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_negatives", [1, 3])
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.0}, {"student_temperature": 3.0, "teacher_temperature": 5.0}]
)
def test_kl_divergence_equals_the_peers(peer, num_negatives, settings):
    query, documents, gold = vectors(1), columns(num_negatives), labels(num_negatives)
    expected = peer.SparseDistillKLDivLoss(None, **settings).compute_loss_from_embeddings([query, *documents], gold)
    ours = KLDivergence(**settings)(step(query @ torch.cat(documents).T, teacher_scores(gold)))
    assert ours > 0.01
    check_equal(ours, expected, [query, *documents])


@pytest.mark.parametrize("num_negatives", [1, 3])
def test_margin_mse_equals_the_peers(peer, num_negatives):
    query, documents, gold = vectors(1), columns(num_negatives), labels(num_negatives)
    expected = peer.SparseMarginMSELoss(None).compute_loss_from_embeddings([query, *documents], gold)
    scores = query @ torch.cat(documents).T
    check_equal(MarginMSE()(step(scores, teacher_scores(gold))), expected, [query, *documents])
    scaled = MarginMSE(teacher_scale=0.5)(step(scores, teacher_scores(gold) * 2))
    check_equal(scaled, expected, [query, *documents])


def test_a_full_matrix_is_the_kl_of_torch():
    scores, teacher = torch.randn(4, 9).requires_grad_(), torch.randn(4, 9)
    expected = torch.nn.functional.kl_div(scores.log_softmax(1), teacher.log_softmax(1), None, None, "batchmean", True)
    check_equal(kl_divergence_loss(scores, teacher, 1.0, 1.0), expected, [scores])
    same = kl_divergence_loss(teacher * 2, teacher, student_temperature=2.0, teacher_temperature=1.0)
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_pairs_that_are_not_scored_have_no_gradient():
    """Columns of NaN: as if these documents were not there; a query with one score: as if it were not there."""
    scores, teacher = torch.randn(4, 7), torch.randn(4, 7)
    teacher[:, 5:] = torch.nan
    teacher[1, 1:] = torch.nan
    teacher[3] = torch.nan
    answers = torch.tensor([[0, 0], [1, 0], [2, 2], [2, 6], [3, 3]])
    for loss in (kl_divergence_loss, lambda s, t: margin_mse_loss(s, t, answers)):
        leaf = scores.clone().requires_grad_()
        value = loss(leaf, teacher)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert value.isfinite()
        assert value > 0
        assert gradient.isfinite().all()
        assert (gradient[~torch.isnan(teacher)][:5] != 0).all()
        assert (gradient[torch.isnan(teacher)] == 0).all()
        assert (gradient[1] == 0).all()
    kept = kl_divergence_loss(scores[[0, 2], :5], teacher[[0, 2], :5])
    torch.testing.assert_close(kl_divergence_loss(scores, teacher), kept)
    kept = margin_mse_loss(scores[[0, 2], :5], teacher[[0, 2], :5], torch.tensor([[0, 0], [1, 2]]))
    torch.testing.assert_close(margin_mse_loss(scores, teacher, answers), kept)


def test_nothing_scored_is_a_loss_of_zero():
    scores = torch.randn(3, 3).requires_grad_()
    for loss in (KLDivergence(), MarginMSE()):
        value = loss(step(scores, torch.full((3, 3), torch.nan)))
        assert value == 0
        (gradient,) = torch.autograd.grad(value, scores)
        assert (gradient == 0).all()


def test_each_answer_of_a_query_has_its_margins():
    scores, teacher = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[1.0, 2.0, 0.0]])
    # Answer 0 against 1 and 2, answer 1 against 0 and 2.
    errors = torch.tensor([2.0 - -1.0, 3.0 - 1.0, -2.0 - 1.0, 1.0 - 2.0])
    loss = margin_mse_loss(scores, teacher, torch.tensor([[0, 0], [0, 1]]))
    torch.testing.assert_close(loss, errors.square().mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_out_in_fp32(dtype):
    scores, teacher = torch.randn(4, 6).to(dtype), torch.randn(4, 6)
    answers = torch.arange(4).repeat(2, 1).T
    for loss in (kl_divergence_loss, lambda s, t: margin_mse_loss(s, t, answers)):
        assert loss(scores, teacher).dtype == torch.float32
        torch.testing.assert_close(loss(scores, teacher), loss(scores.float(), teacher), rtol=0, atol=0)


def test_they_are_parts_of_the_objective_by_short_names():
    objective = Objective(ranking=["in_batch", "kl", MarginMSE(weight=0.5)])
    assert objective.teacher_losses == ["kl_divergence", "margin_mse"]
    scores, teacher = torch.randn(3, 5), torch.randn(3, 5)
    losses = objective(step(scores, teacher))
    assert losses.values["kl_divergence"] == kl_divergence_loss(scores, teacher)
    values = losses.values
    expected = values["ranking_loss"] + values["kl_divergence"] + 0.5 * values["margin_mse"]
    torch.testing.assert_close(losses.loss, expected)  # lambda is 0 at the first step
    assert {fact.tag for fact in objective.facts()} >= {"SparseDistillKLDivLoss", "SparseMarginMSELoss"}
    assert objective.settings["ranking"][2]["init_args"] == {"teacher_scale": 1.0, "weight": 0.5}
    assert Objective().teacher_losses == []


def test_without_a_teacher_they_say_what_to_set():
    for loss in (KLDivergence(), MarginMSE()):
        with pytest.raises(UserError, match=r"^(kl_divergence|margin_mse) learns from a teacher.*data\.teacher"):
            loss(step(torch.randn(2, 2), None))
    with pytest.raises(UserError, match=r"KLDivergence\.teacher_temperature is 0"):
        KLDivergence(teacher_temperature=0.0)
    with pytest.raises(UserError, match=r"MarginMSE\.teacher_scale is -1"):
        MarginMSE(teacher_scale=-1.0)


@pytest.mark.parametrize("ranking", ["kl", "margin_mse"])
def test_scores_of_any_size_that_is_taken_train(make_masked_lm, tiny_tokenizer, tmp_path, caplog, ranking):
    """The largest numbers that the data may hold, in every row; what fp32 has no number for is refused."""
    base = str(save_base(tmp_path / "base", make_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer))
    rows = [json.loads(line) for line in write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer).read_text().splitlines()]
    data = tmp_path / "scored.jsonl"

    def fit(largest: str) -> SpladeModule:
        lines = [json.dumps(row).removesuffix("}") + f', "scores": [{largest}, -{largest}, 0.5]}}' for row in rows]
        data.write_text("\n".join(lines))
        L.seed_everything(1)
        module = SpladeModule(base, ranking=[ranking], learning_rate=1e-3)
        scored = make_data(base, data, NEGATIVES, score_columns=["scores"])
        make_trainer(tmp_path, 4).fit(module, scored)
        return module

    weights = named_weights(fit("1e9"))
    assert all(weight.isfinite().all() for weight in weights.values())
    assert "not finite" not in caplog.text
    for largest in ("1e10", "1e38", "1e39", "Infinity"):
        with pytest.raises(UserError, match=r"line 1: the column scores must hold numbers, .* none beyond 1e\+09, but"):
            fit(largest)
