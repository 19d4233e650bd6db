"""What the backward pass makes again: the same gradients, and no more work than said."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_layers import GradientCheckpointingLayer

from splade_lit.core.tokens import Tokens
from splade_lit.encoder.body.recompute import set_recompute
from splade_lit.encoder.document import MlmDocumentEncoder

TOKENS = Tokens.from_lists([[5, 9, 7, 30, 12], [8, 11], [40, 6, 21, 9, 9, 13, 50, 2]])


class Operations(TorchDispatchMode):
    """Counts the operations that run."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.counts[operation.name()] += 1
        return operation(*args, **(kwargs or {}))


def backward(model, recompute):
    """Gradients of a step from the same random numbers, and the operations of its backward pass."""
    encoder = MlmDocumentEncoder(model)
    encoder.train()
    set_recompute(encoder.model, recompute)
    torch.manual_seed(7)
    output = encoder(TOKENS)
    with Operations() as operations:
        output.sum().backward()
    return {name: p.grad for name, p in encoder.named_parameters()}, operations.counts


@pytest.mark.parametrize("recompute", ["cheap", "layers"])
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "electra", "modernbert"])
def test_gradients_are_the_same_with_dropout_on(architecture, recompute, make_masked_lm):
    expected, _ = backward(make_masked_lm(architecture, 60), "nothing")
    ours, _ = backward(make_masked_lm(architecture, 60), recompute)
    assert expected
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_cheap_runs_neither_attention_nor_narrow_products_again_and_nothing_of_the_last_layer(make_masked_lm):
    layers = 2 - 1
    linear, attention = "aten::addmm", "splade_lit::dropout_attention"
    counts = {
        recompute: backward(make_masked_lm("bert", 60), recompute)[1] for recompute in ("nothing", "cheap", "layers")
    }
    assert {recompute: count[linear] for recompute, count in counts.items()} == {
        "nothing": 0,
        "cheap": layers,
        "layers": 6 * layers,
    }
    assert {recompute: count[attention] for recompute, count in counts.items()} == {
        "nothing": 0,
        "cheap": 0,
        "layers": layers,
    }


@torch.library.custom_op("splade_lit_tests::random_attention", mutates_args=())
def random_attention(states: Tensor) -> Tensor:
    return states * torch.rand(1)


random_attention.register_autograd(lambda ctx, grad: grad)


class RandomLayer(GradientCheckpointingLayer):
    """What a layer does on a GPU: dropout in the attention, which is kept, and dropout as one operation after it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, states):
        return torch.native_dropout(random_attention(self.linear(states)), 0.5, True)[0]


def test_what_is_drawn_behind_a_kept_attention_is_drawn_once():
    def gradients(recompute):
        torch.manual_seed(0)
        model = nn.Sequential(RandomLayer(), RandomLayer(), RandomLayer()).train()
        set_recompute(model, recompute)
        torch.manual_seed(7)
        model(torch.ones(50, 64)).sum().backward()
        return [p.grad for p in model.parameters()]

    for ours, expected in zip(gradients("cheap"), gradients("nothing"), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("recompute", "times"), [("nothing", 0), ("cheap", 2), ("layers", 4)])
def test_free_pages_go_back_twice_a_step_or_before_each_layer_made_again(recompute, times, monkeypatch):
    returns = []
    monkeypatch.setattr("splade_lit.encoder.body.recompute.return_free_memory", lambda: returns.append(True))
    model = nn.Sequential(*(RandomLayer() for _ in range(5))).train()
    set_recompute(model, recompute)
    output = model(torch.ones(2, 64)).sum()
    assert not returns
    output.backward()
    assert len(returns) == times
