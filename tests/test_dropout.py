"""Dropout on a CPU: masks, attention and its gradients, against dense autograd with the same masks."""

import pytest
import torch
from torch import nn

from splade_lit.encoder.body.dropout import CpuDropout, KeepMasks, dropout_attention, use_cpu_dropout

LENGTHS = [5, 1, 12, 3]


def dense_attention(query, key, value, lengths, dropout, scaling, sliding_window, seed):
    """The same with torch's autograd through the weights, the masks drawn in the same order."""
    keep = KeepMasks(dropout, seed)
    outputs = []
    for q, k, v in zip(*(x[0].split(lengths, 1) for x in (query, key, value)), strict=True):
        scores = q @ k.transpose(1, 2) * scaling
        if sliding_window is not None:
            position = torch.arange(q.shape[1])
            far = (position[:, None] - position).abs() >= sliding_window
            scores = scores.masked_fill(far, -torch.inf)
        weights = scores.softmax(-1)
        outputs.append((weights * keep.mask(weights.shape) * keep.scale) @ v)
    return torch.cat(outputs, 1).transpose(0, 1)[None]


@pytest.mark.parametrize("sliding_window", [None, 4])
def test_attention_and_its_gradients_are_those_of_dense_autograd(sliding_window):
    torch.manual_seed(0)
    inputs = [torch.randn(1, sum(LENGTHS), 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(1, sum(LENGTHS), 2, 8, dtype=torch.float64)
    results = []
    for attention in (dropout_attention, dense_attention):
        output = attention(*(x.transpose(1, 2) for x in inputs), LENGTHS, 0.3, 0.5, sliding_window, 1)
        results.append((output, *torch.autograd.grad(output, inputs, upstream)))
    for ours, dense in zip(*results, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-12)


def test_attention_without_anything_dropped_is_torchs():
    query, key, value = (torch.randn(1, 2, 7, 16) for _ in range(3))
    expected = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    torch.testing.assert_close(dropout_attention(query, key, value, [7], 0.0, 0.25, None, 1), expected)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_masks_drop_as_many_as_asked_and_keep_the_expectation(probability):
    keep = KeepMasks(probability, seed=3)
    kept = keep.mask((1000, 1000)).float()
    assert kept.mean().item() == pytest.approx(1 - probability, abs=2e-3)
    assert (kept.mean() * keep.scale).item() == pytest.approx(1, abs=2e-2)
    assert kept.mean(0).std().item() == pytest.approx((probability * (1 - probability) / 1000) ** 0.5, rel=0.15)


def test_masks_are_those_of_their_seed():
    first, again, other = (KeepMasks(0.5, seed) for seed in (1, 1, 2))
    one, two = first.mask((3, 50)), first.mask((3, 50))
    assert torch.equal(one, again.mask((3, 50)))
    assert torch.equal(two, again.mask((3, 50)))
    assert not torch.equal(one, two)
    assert not torch.equal(one, other.mask((3, 50)))


def test_dropout_is_repeatable_with_torchs_seed_and_off_in_evaluation():
    dropout, x = CpuDropout(0.25), torch.randn(40, 50)
    torch.manual_seed(5)
    first = dropout(x)
    torch.manual_seed(5)
    assert torch.equal(first, dropout(x))
    assert not torch.equal(first, dropout(x))
    kept = first != 0
    torch.testing.assert_close(first[kept], x[kept] / 0.75)
    assert torch.equal(dropout.eval()(x), x)


def test_gradient_of_dropout_flows_where_something_was_kept():
    x = torch.randn(40, 50, requires_grad=True)
    output = CpuDropout(0.25)(x)
    output.sum().backward()
    torch.testing.assert_close(x.grad, (output != 0) / 0.75)


def test_dropout_is_swapped_in_with_names_probabilities_and_modes_kept():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.4).eval()))
    names = [name for name, _ in model.named_modules()]
    use_cpu_dropout(model)
    assert [name for name, _ in model.named_modules()] == names
    assert [(type(m), m.p, m.training) for m in (model[1], model[2][0])] == [
        (CpuDropout, 0.2, True),
        (CpuDropout, 0.4, False),
    ]
