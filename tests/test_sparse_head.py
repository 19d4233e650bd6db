import copy
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from splade_lit.core.tokens import Tokens
from splade_lit.encoder.body import sparse_head, winners
from splade_lit.encoder.body.sparse_head import max_logits, splade_pool
from splade_lit.encoder.document import MlmDocumentEncoder

OFFSETS = (0, 7, 7, 8, 20, 20)  # an empty document, one of one token, an empty one at the end


@pytest.fixture(params=[False, True], ids=["by_document", "together"], autouse=True)
def together(request, monkeypatch) -> bool:
    """Whether all documents go through each operation together, as they do on a GPU."""
    monkeypatch.setattr(sparse_head, "_BATCHED_DEVICES", {"cpu"} if request.param else set())
    return request.param


def dense_pool(hidden, weight, bias, offsets, pooling="max", activation="relu") -> Tensor:
    """The plain way, with all logits of a document: what the sparse head must equal."""
    rows = []
    for start, end in pairwise(offsets):
        if start == end:
            rows.append(
                hidden.new_zeros(len(weight)).float()
                if hidden.dtype != torch.float64
                else weight.new_zeros(len(weight))
            )
            continue
        logits = hidden[start:end] @ weight.T
        if bias is not None:
            logits = logits + bias
        if hidden.dtype != torch.float64:
            logits = logits.float()
        x = torch.log1p(torch.relu(logits))
        if activation == "log1p_relu":
            x = torch.log1p(x)
        rows.append(x.max(0).values if pooling == "max" else x.sum(0))
    return torch.stack(rows)


def operands(vocab=60, hidden=16, bias_mean=0.0, dtype=torch.float64, offsets=OFFSETS, with_bias=True):
    random = torch.Generator().manual_seed(1)
    states = torch.randn(offsets[-1], hidden, generator=random, dtype=torch.float64)
    weight = torch.randn(vocab, hidden, generator=random, dtype=torch.float64)
    bias = torch.randn(vocab, generator=random, dtype=torch.float64) + bias_mean
    tensors = (states, weight, bias) if with_bias else (states, weight)
    leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    return (*leaves, None) if not with_bias else tuple(leaves)


def gradients(function, inputs, *args, **kwargs):
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves, *args, **kwargs)
    random = torch.Generator().manual_seed(2)
    upstream = torch.randn(output.shape, generator=random, dtype=torch.float64).to(output.dtype)
    output.backward(upstream)
    return output.detach(), [leaf.grad for leaf in leaves if leaf is not None]


def assert_same(ours, expected, tolerance):
    torch.testing.assert_close(ours[0], expected[0], rtol=tolerance, atol=tolerance)
    for grad, other in zip(ours[1], expected[1], strict=True):
        torch.testing.assert_close(grad, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("bias_mean", [0.0, -8.0, 20.0], ids=["half", "sparse", "dense"])
def test_values_and_gradients_equal_dense_autograd(pooling, activation, with_bias, bias_mean):
    inputs = operands(bias_mean=bias_mean, with_bias=with_bias)
    ours = gradients(splade_pool, inputs, OFFSETS, pooling, activation)
    assert_same(ours, gradients(dense_pool, inputs, OFFSETS, pooling, activation), 1e-10)


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("columns", [1, 7, 59, 60, 1000])
def test_any_tile_gives_the_same(pooling, columns, monkeypatch):
    inputs = operands()
    expected = gradients(dense_pool, inputs, OFFSETS, pooling)
    monkeypatch.setattr(winners, "_COLUMNS", columns)
    monkeypatch.setattr(winners, "_ELEMENTS", columns * 16)
    assert_same(gradients(splade_pool, inputs, OFFSETS, pooling, tile_columns=columns), expected, 1e-10)


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_gradcheck(pooling, activation):
    hidden, weight, bias = operands(vocab=9, hidden=4)
    assert torch.autograd.gradcheck(
        lambda h, w, b: splade_pool(h, w, b, OFFSETS, pooling, activation), (hidden, weight, bias), eps=1e-7, atol=1e-5
    )


def test_first_of_equal_tokens_takes_the_gradient():
    # As torch.max(dim) has it. Ties lie at different places; float32, where rounding could break them.
    random = torch.Generator().manual_seed(0)
    states = torch.randn(3, 32, generator=random)
    hidden = states[[0, 1, 0, 1, 2, 2, 2, 0, 1, 1]]
    offsets = (0, 4, 10)
    weight, bias = torch.randn(200, 32, generator=random), torch.randn(200, generator=random)
    ours = gradients(splade_pool, (hidden, weight, bias), offsets)
    assert_same(ours, gradients(dense_pool, (hidden, weight, bias), offsets), 1e-4)
    repeated = [2, 3, 5, 6, 9]
    assert ours[1][0][repeated].abs().max() == 0
    assert ours[1][0][[0, 1, 4]].abs().amax(1).min() > 0


@pytest.mark.parametrize("bias_mean", [0.0, -8.0, 20.0], ids=["half", "sparse", "dense"])
@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_ties_in_double_precision(bias_mean, pooling):
    hidden, weight, bias = (operand.detach().round() for operand in operands(bias_mean=bias_mean))  # no rounding after
    hidden = hidden[[0, 1, 0, 1, 0, 2, 2, 3, 4, 4, 5, 4, 3, 5, 3, 6, 6, 6, 7, 7]]
    ours = gradients(splade_pool, (hidden, weight, bias), OFFSETS, pooling)
    assert_same(ours, gradients(dense_pool, (hidden, weight, bias), OFFSETS, pooling), 1e-10)


def test_gathered_weights_are_bounded_too(monkeypatch):
    """Many short, dense documents: it is their weights, not their logits, that fill the memory."""
    monkeypatch.setattr(winners, "_ELEMENTS", 4096)
    hidden, weight = torch.randn(32, 64), torch.randn(300, 64)
    sizes = []
    monkeypatch.setattr(
        torch, "bmm", lambda *args, bmm=torch.bmm: (sizes.extend(x.numel() for x in args), bmm(*args))[1]
    )
    found = winners.winners_together(hidden, weight, range(0, 33, 2), torch.ones(16, 300).bool(), torch.float32)
    assert sum(len(dims) for _, dims, *_ in found) == 16 * 300
    assert sizes
    assert max(sizes) <= 4096


def test_a_batch_of_one_text_over_and_over():
    hidden, weight, bias = operands(offsets=(0, 5))
    once = gradients(lambda h, w, b: splade_pool(h.repeat(3, 1), w, b, (0, 5, 10, 15)), (hidden, weight, bias))
    expected = gradients(lambda h, w, b: dense_pool(h.repeat(3, 1), w, b, (0, 5, 10, 15)), (hidden, weight, bias))
    assert_same(once, expected, 1e-10)


@pytest.mark.parametrize("offsets", [(0,), (0, 0), (0, 0, 0)])
def test_no_tokens_at_all(offsets):
    hidden = torch.randn(0, 8, requires_grad=True)
    weight = torch.randn(5, 8, requires_grad=True)
    pooled = splade_pool(hidden, weight, None, offsets)
    assert pooled.shape == (len(offsets) - 1, 5)
    assert not pooled.any()
    pooled.sum().backward()
    assert not weight.grad.any()


def test_max_logits_are_those_before_the_activation():
    hidden, weight, bias = operands()
    expected = torch.stack([(hidden[a:b] @ weight.T + bias).max(0).values for a, b in [(0, 7), (7, 8), (8, 20)]])
    logits = max_logits(hidden, weight, bias, OFFSETS)
    torch.testing.assert_close(logits[[0, 2, 3]], expected.detach())
    assert not logits.requires_grad
    assert (logits[[1, 4]] == -torch.inf).all()
    with torch.autocast("cpu", torch.bfloat16):
        halved = max_logits(hidden.float(), weight.float(), bias.float(), (0, 20))
    torch.testing.assert_close(halved, (hidden @ weight.T + bias).max(0).values[None].float(), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_autocast_is_as_close_as_a_plain_bf16_product(pooling):
    inputs = operands(vocab=300, hidden=64, dtype=torch.float32)

    def under_autocast(*args):
        with torch.autocast("cpu", torch.bfloat16):
            return splade_pool(*args, OFFSETS, pooling)

    exact = gradients(dense_pool, inputs, OFFSETS, pooling)
    halved = gradients(under_autocast, inputs)
    assert halved[0].dtype == torch.float32
    assert [grad.dtype for grad in halved[1]] == [torch.float32] * 3
    scale = 1 if pooling == "max" else 12
    torch.testing.assert_close(halved[0], exact[0], rtol=0.02, atol=0.05 * scale)
    for grad, other in zip(halved[1], exact[1], strict=True):
        assert torch.isfinite(grad).all()
        # Near ties may go to another token, so entries differ; what they add up to does not.
        assert torch.nn.functional.cosine_similarity(grad.flatten(), other.flatten(), 0) > 0.97


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_half_precision_inputs(dtype, pooling):
    inputs = operands(dtype=dtype)
    value, grads = gradients(splade_pool, inputs, OFFSETS, pooling)
    expected = dense_pool(*(x.detach().double() for x in inputs), OFFSETS, pooling)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=0.03, atol=0.1)
    assert all(grad.dtype == dtype and torch.isfinite(grad).all() for grad in grads)


def test_broken_numbers_reach_the_gradients():
    hidden, weight, bias = (x.detach().clone() for x in operands())
    hidden[0] = torch.nan
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    splade_pool(*leaves, OFFSETS).sum().backward()
    assert leaves[1].grad.isnan().any()
    assert leaves[0].grad[:7].isnan().any()
    assert torch.isfinite(leaves[0].grad[7:]).all()


def test_tied_weights_gather_both_gradients():
    embedding = nn.Parameter(operands()[1].detach())
    ids = torch.randint(60, (20,), generator=torch.Generator().manual_seed(3))

    def tied(table, pool):
        return pool(torch.tanh(table[ids]), table, None, OFFSETS)

    ours = gradients(lambda table: tied(table, splade_pool), (embedding,))
    assert_same(ours, gradients(lambda table: tied(table, dense_pool), (embedding,)), 1e-10)


def test_gradients_that_nobody_asked_for_are_not_made():
    hidden, weight, bias = operands()
    pooled = splade_pool(hidden, weight.detach(), bias.detach(), OFFSETS)
    (grad,) = torch.autograd.grad(pooled.sum(), [hidden])
    expected = torch.autograd.grad(dense_pool(hidden, weight, bias, OFFSETS).sum(), [hidden])[0]
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-10)


def saved_bytes(run) -> tuple[int, list[torch.Size]]:
    sizes = {}

    def keep(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = run()
    del output
    return sum(size for size, _ in sizes.values()), [shape for _, shape in sizes.values()]


@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_what_is_kept_for_backward_grows_with_documents_not_tokens(pooling):
    vocab, hidden = 2000, 8
    weight = torch.randn(vocab, hidden, requires_grad=True)

    def kept(length, pool):
        offsets = tuple(range(0, 4 * length + 1, length))
        states = torch.randn(offsets[-1], hidden, requires_grad=True)
        size, shapes = saved_bytes(lambda: pool(states, weight, None, offsets, pooling))
        return size - states.nbytes - weight.nbytes, shapes

    short, long = kept(16, splade_pool), kept(128, splade_pool)
    assert short[0] == long[0] == 4 * vocab * 4  # the pooled values
    assert all(shape.numel() <= max(4 * vocab, vocab * hidden) for shape in long[1])
    assert kept(128, dense_pool)[0] > 50 * long[0]  # the plain way, by the same measure


def tiny_document_encoder(make_masked_lm, **settings) -> MlmDocumentEncoder:
    return MlmDocumentEncoder(make_masked_lm("bert", 120), **settings)


def some_tokens() -> Tokens:
    random = torch.Generator().manual_seed(5)
    return Tokens.from_lists([torch.randint(5, 120, (n,), generator=random).tolist() for n in (12, 3, 1, 30)])


def parameter_gradients(encoder: nn.Module, run) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.zero_grad()
    embeddings = run()
    (embeddings**2).sum().backward()
    return embeddings.detach(), {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


def assert_same_parameters(ours, expected, tolerance=1e-4):
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-5, atol=1e-5)
    assert ours[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        atol = tolerance * float(grad.abs().max()) + 1e-5  # gradients of key biases are 0 but for rounding
        torch.testing.assert_close(
            ours[1][name], grad, rtol=tolerance, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_compiled_model_gives_the_same(make_masked_lm):
    encoder, tokens = tiny_document_encoder(make_masked_lm), some_tokens()
    expected = parameter_gradients(encoder, lambda: encoder(tokens))
    encoder.model.compile(backend="aot_eager")
    assert_same_parameters(parameter_gradients(encoder, lambda: encoder(tokens)), expected)
    other = Tokens.from_lists([[7, 8, 9], [20, 21]])
    assert encoder(other).shape == (2, 120)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same(make_masked_lm, use_reentrant):
    encoder, tokens = tiny_document_encoder(make_masked_lm).train(), some_tokens()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    encoder.model.config.attention_probs_dropout_prob = 0.0
    assert encoder.packed
    expected = parameter_gradients(encoder, lambda: encoder(tokens))
    encoder.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert encoder.model.is_gradient_checkpointing
    assert_same_parameters(parameter_gradients(encoder, lambda: encoder(tokens)), expected)


def test_lora_trains_and_equals_the_padded_way(make_masked_lm):
    encoder, tokens = tiny_document_encoder(make_masked_lm), some_tokens()
    padded = tiny_document_encoder(make_masked_lm, packed=False)
    for one in (encoder, padded):
        torch.manual_seed(0)
        settings = LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
        one.model = get_peft_model(one.model, settings)
    assert encoder.packed
    assert not padded.packed
    ours = parameter_gradients(encoder, lambda: encoder(tokens))
    assert_same_parameters(ours, parameter_gradients(padded, lambda: padded(tokens)))
    trained = [name for name in ours[1] if "lora" in name]
    assert len(trained) == 8
    assert all(ours[1][name].any() for name in trained)
    before = encoder(tokens).detach()
    optimizer = torch.optim.SGD([p for n, p in encoder.named_parameters() if "lora" in n], lr=1e-2)
    optimizer.step()
    changed = encoder(tokens).detach()
    assert not torch.allclose(before, changed)
    merged = copy.deepcopy(encoder)
    merged.model = merged.model.merge_and_unload()
    torch.testing.assert_close(merged(tokens).detach(), changed, rtol=1e-4, atol=1e-4)
    with merged.whole_model() as model:
        assert model.get_output_embeddings() is merged.decoder
