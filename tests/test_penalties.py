"""Penalties by hand: their values, gradients and state, several at a time, each with its weight."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from splade_lit.core.errors import UserError
from splade_lit.losses.objective import Objective
from splade_lit.losses.part import Step
from splade_lit.losses.penalties import (
    L1,
    AntiZero,
    DfFlops,
    Flops,
    L0Mask,
    anti_zero_penalty,
    df_activation,
    flops_penalty,
    idf_shares,
)
from splade_lit.losses.weights import Ramp

DOCUMENTS = [[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]]


def a_step(documents: Any = DOCUMENTS, step: int = 1, **fields: Any) -> Step:
    documents = torch.as_tensor(documents)
    fields = {"mean_query": torch.tensor([0.5, 1.0, 0.0]), "idf_weights": torch.tensor([1.0, 1.0, 4.0])} | fields
    answers = torch.arange(len(documents)).repeat(2, 1).T
    return Step(torch.eye(len(documents)) * 2, answers, documents, step=step, total_steps=6, **fields)


def gradient(penalty: Any, documents: Tensor) -> Tensor:
    documents = documents.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(penalty(documents), documents)
    return found


@pytest.mark.parametrize("power", [-1.0, 0.5, 2.0])
def test_idf_weighted_flops_by_hand(power):
    """The penalty as a whole stays; each dim's gradient goes with the power of its weight."""
    step = a_step()
    assert float(Flops(power)(step.documents, step)) == pytest.approx(5.0)  # as without: 2^2 + 1^2
    factor = 5.0 / (4 * 1.0 + 1 * 4.0**power)  # so that c (4 * 1^p + 1 * 4^p) is 5
    # d/dd_ij of c idf_j^p m_j^2 is 2 c idf_j^p m_j / n, with n = 2
    expected = [[2.0 * factor, 0.0, 1.0 * factor * 4.0**power]] * 2
    found = gradient(lambda documents: Flops(power)(documents, step), step.documents)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_idf_weighted_flops_is_safe_with_any_table():
    """Weights of 0, negative or very large ones; documents that are all 0."""
    step = a_step(idf_weights=torch.tensor([0.0, -3.0, 1e6]))
    for power in (-10.0, 10.0):
        assert math.isfinite(float(Flops(power)(step.documents, step)))
        assert gradient(lambda documents, p=power: Flops(p)(documents, step), step.documents).isfinite().all()
    assert float(Flops(1.0)(torch.zeros(2, 3), step)) == 0
    assert float(idf_shares(torch.tensor([[1.0, 1.0]]), torch.tensor([-1.0, 0.01]), 1.0)[0]) == 1.0  # both the least
    assert float(Flops(0.0)(step.documents, a_step(idf_weights=None))) == 5.0


def df_weight(share: float, a: float, b: float) -> float:
    """As the paper writes it."""
    return 1 / (1 + (share ** math.log(2, a) - 1) ** b)


def test_df_activation_is_that_of_the_paper():
    shares = torch.tensor([1.0, 0.6, 0.3, 0.11, 0.1, 0.09, 0.02], dtype=torch.float64)
    for a, b in ((0.1, 10.0), (0.3, 2.0), (0.05, 5.0)):
        expected = [df_weight(float(share), a, b) for share in shares]
        torch.testing.assert_close(df_activation(shares, a, b), torch.tensor(expected, dtype=torch.float64))
    ends = df_activation(torch.tensor([0.0, 1e-30, 2.0]), 0.9, 100.0)
    assert ends.tolist() == [0.0, 0.0, 1.0]


def test_df_flops_by_hand():
    """Dim 0 is in both documents, dim 2 in one, dim 1 in none."""
    step, penalty = a_step(), DfFlops(half_share=0.5, steepness=2.0)
    penalty.prepare(3)
    assert float(penalty(step.documents, step)) == pytest.approx((1.0 * 2) ** 2 + (0.5 * 1) ** 2)
    found = gradient(lambda documents: penalty(documents, step), step.documents)
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.0, 0.25]] * 2))  # 2 w^2 m / n


def test_df_flops_remembers_documents_whatever_the_batch_size():
    documents = (torch.rand(512, 40, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    tables = []
    for size in (16, 128):
        penalty = DfFlops(memory=200)
        penalty.prepare(40)
        for batch in documents.split(size):
            penalty(batch, a_step(batch, mean_query=torch.zeros(40), idf_weights=None))
        tables.append(penalty.documents_with / penalty.documents_seen)
    torch.testing.assert_close(*tables, atol=0.02, rtol=0)
    before = {name: state.clone() for name, state in penalty.state_dict().items()}
    assert before.keys() == {"documents_with", "documents_seen"}
    held_out = a_step(documents, mean_query=torch.zeros(40), idf_weights=None)
    penalty.eval()(documents, held_out)  # is not counted
    assert all(torch.equal(state, before[name]) for name, state in penalty.state_dict().items())


def test_anti_zero_by_hand():
    """Of sums 1.5 of the mean query and 3 of the mean document."""
    step = a_step()
    value = AntiZero(smallest=0.3)(step.documents, step)
    assert float(value) == pytest.approx(1 / (1.5**2 + 0.09) + 1 / (3.0**2 + 0.09))
    found = gradient(lambda documents: AntiZero(0.3)(documents, step), step.documents)
    torch.testing.assert_close(found, torch.full((2, 3), -2 * 3.0 / 9.09**2 / 2))


def test_anti_zero_is_bounded():
    sums = [0.0, *torch.logspace(-8, 3, 200).tolist()]
    for total in sums:
        step = a_step(mean_query=torch.tensor([total, 0.0, 0.0]))
        documents = torch.full((2, 3), total / 3)
        assert float(AntiZero(0.5)(documents, step)) <= 2 / 0.5**2 + 1e-5
        assert gradient(lambda d, s=step: AntiZero(0.5)(d, s), documents).sum(0).abs().max() <= 0.65 / 0.5**3


@pytest.mark.parametrize("penalty", ["flops", "idf_flops", "df_flops", "anti_zero"])
def test_gradients_are_those_of_finite_differences(penalty):
    generator = torch.Generator().manual_seed(0)
    documents = torch.rand(4, 6, generator=generator, dtype=torch.float64).requires_grad_()
    weights = torch.rand(6, generator=generator, dtype=torch.float64) + 0.1
    shares = idf_shares(documents, weights, 1.5).sqrt()  # detached, as in training
    functions = {
        "flops": flops_penalty,
        "idf_flops": lambda d: flops_penalty(d * shares),
        "df_flops": lambda d: flops_penalty(d * df_activation(weights.clamp(max=1), 0.1, 10.0)),
        "anti_zero": lambda d: anti_zero_penalty(weights, d.mean(0), 0.3),
    }
    assert torch.autograd.gradcheck(functions[penalty], (documents,))


def test_several_penalties_each_with_its_weight():
    """FLOPS and L1 share lambda_d; the third has a number, the fourth a schedule."""
    step = a_step()
    own = [AntiZero(0.3, weight=2.0), Named(weight=Ramp(0.4, "linear", 0.5))]
    objective = Objective(penalty=["flops", Absolute(), *own], lambda_d=0.1, lambda_schedule="constant", lambda_q=0.2)
    losses = objective(step)
    values = {name: float(value) for name, value in losses.values.items()}
    anti_zero = 1 / (1.5**2 + 0.09) + 1 / (3.0**2 + 0.09)
    expected = {"document_penalty": 5.0, "document_l1": 3.0, "document_anti_zero": anti_zero, "document_named": 1.0}
    expected |= {"query_penalty": 1.25, "query_l1": 1.5}
    assert {name: value for name, value in values.items() if name != "ranking_loss"} == pytest.approx(expected)
    weights = {"lambda_d": 0.1, "lambda_q": 0.2, "lambda_d_anti_zero": 2.0, "lambda_d_named": 0.4 / 3}
    assert losses.weights == pytest.approx(weights)
    total = values["ranking_loss"] + 0.1 * 8 + 0.2 * 2.75 + 2 * anti_zero + 0.4 / 3
    assert float(losses.loss) == pytest.approx(total)
    assert {*objective.logged_names} == {*values, *weights}
    assert [*objective.parts][-3:] == ["lambda_d", "lambda_d_named", "lambda_q"]


class Absolute(L1):
    """L1 under another name, so that it can stand beside FLOPS."""

    name = "l1"


class Named(L1):
    """Always 1."""

    def forward(self, vectors: Tensor, step: Step) -> Tensor:
        return vectors.new_ones(())


def test_penalties_of_one_name_are_told_apart_by_their_classes():
    """On both sides, under a mask, beside a power of IDF, and with a weight of its own; names in the card follow."""
    settings = {"lambda_q": 0.2, "l0_threshold": 1, "flops_idf_power": -0.5}
    objective = Objective(penalty=["flops", "l1", "df_flops", DfFlops(weight=0.5), L1(weight=0.1)], **settings)
    objective.prepare(a_step().documents.shape[1])
    step = replace(a_step(), idf_weights=torch.ones(a_step().documents.shape[1]))
    losses = objective(step)
    assert [*losses.values][1:] == [
        *(f"document_{name}" for name in ("penalty", "l1", "df_flops", "df_flops_2", "l1_2")),
        *(f"query_{name}" for name in ("penalty", "l1", "df_flops")),
    ]
    assert {*losses.weights} == {"lambda_d", "lambda_q", "lambda_d_df_flops_2", "lambda_d_l1_2"}
    assert {*objective.logged_names} == {*losses.values, *losses.weights}
    facts = {part.name: [one.title for one in part.citations] for part in objective.facts()}
    assert facts["document_l1"] == ["l0 Mask", "L1 Penalty"]
    assert [*Objective(penalty="l1").parts] == ["ranking_loss", "document_penalty", "lambda_d"]


def test_the_mask_is_of_penalties_that_share_lambda():
    objective = Objective(penalty=["flops", "anti_zero"], l0_threshold=1)
    kinds = [type(part).__name__ for name, part in objective.parts.items() if name.startswith("document_")]
    assert kinds == ["L0Mask", "AntiZero"]
    values = objective(a_step()).values
    assert float(values["document_penalty"]) == 1.25
    assert float(values["document_anti_zero"]) == pytest.approx(1 / 2.34 + 1 / 9.09)


def test_a_guard_lowers_what_makes_sparse_and_nothing_else():
    step = a_step()
    by_hand = 0.25 * float(Flops()(step.documents, step))  # half of it, of a half
    for penalties in (
        [Flops()],
        [Flops(), AntiZero(weight=None)],
        [L0Mask(AntiZero(weight=None), 2), Flops()],
    ):
        objective = Objective(penalty=penalties, lambda_d=Ramp(0.5, "constant"))
        whole = float(objective(step).loss)
        objective.lower_penalties(0.5)
        assert whole - float(objective(step).loss) == pytest.approx(by_hand, rel=1e-5)


def test_names_make_penalties_with_their_settings():
    assert Objective(flops_idf_power=-0.5).parts["document_penalty"].settings == {"idf_power": -0.5, "weight": None}
    assert isinstance(Objective(penalty="df_flops").parts["document_df_flops"], DfFlops)
    facts = {part.name: part for part in Objective(penalty=["df_flops", "anti_zero"], flops_idf_power=0.0).facts()}
    titles = {name: [citation.title for citation in part.citations] for name, part in facts.items()}
    assert titles["document_df_flops"] == ["FLOPS Penalty", "DF-FLOPS Penalty"]
    assert titles["document_anti_zero"] == ["Anti-Zero Term"]
    (penalty,) = (part for part in Objective(flops_idf_power=1.0).facts() if part.name == "document_penalty")
    assert (penalty.tag, len(penalty.citations)) == ("IdfFlopsLoss", 2)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Objective(penalty="l1", flops_idf_power=1.0),
            "model.flops_idf_power is of the penalty flops; name it",
        ),
        (lambda: Objective(penalty=[]), "model.penalty is empty"),
        (lambda: Flops(idf_power=math.nan), "Flops.idf_power is nan"),
        (lambda: Flops(weight=-1.0), "Flops.weight is -1.0"),
        (lambda: DfFlops(half_share=1.0), "DfFlops.half_share is 1.0"),
        (lambda: DfFlops(memory=0), "DfFlops.memory is 0"),
        (lambda: AntiZero(smallest=0.0), "AntiZero.smallest is 0.0"),
        (lambda: L0Mask(Flops(), 2, weight=math.inf), "L0Mask.weight is inf"),
        (lambda: L0Mask(Flops(weight=0.1), 2), "L0Mask.penalty has a weight of its own"),
        (lambda: Objective(penalty=[Flops(weight=0.1)], lambda_d=0.1), "model.lambda_d has no effect"),
        (lambda: Objective(penalty=[Flops(weight=0.1)], lambda_q=0.1), "model.lambda_q has no effect"),
        (lambda: Objective(penalty=["anti_zero"], l0_threshold=3), "model.l0_threshold has no effect"),
    ],
)
def test_settings_of_penalties_out_of_range(make, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        make()
