import logging

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, BertConfig, BertForMaskedLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from splade_lit.core.tokens import Tokens
from splade_lit.encoder.body import packing
from splade_lit.encoder.document import MlmDocumentEncoder

VERIFIED = ["bert", "distilbert", "roberta", "xlm-roberta", "electra", "modernbert"]
FALLBACK = ["mpnet", "deberta-v2"]
PADDING_ID = 1
VOCAB = 150


def documents(lengths=(40, 3, 1, 17, 60, 25), seed=0) -> Tokens:
    # In all more tokens than the models have positions (80), some documents longer than ModernBERT's window (8).
    random = torch.Generator().manual_seed(seed)
    return Tokens.from_lists([torch.randint(5, VOCAB, (n,), generator=random).tolist() for n in lengths])


def encoders(make_masked_lm, architecture: str) -> tuple[MlmDocumentEncoder, MlmDocumentEncoder]:
    """The same weights packed and padded, the padded one with transformers' own attention and positions."""
    packed, padded = (
        MlmDocumentEncoder(make_masked_lm(architecture, VOCAB, PADDING_ID), PADDING_ID, packed=packed)
        for packed in (True, False)
    )
    assert not padded.packed
    return packed, padded


def gradients(encoder: MlmDocumentEncoder, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
    embeddings = encoder(tokens)
    (embeddings**2).mean().backward()
    return embeddings.detach(), {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", VERIFIED)
def test_packed_equals_padded(architecture, make_masked_lm):
    packed, padded = encoders(make_masked_lm, architecture)
    assert packed.packed
    tokens = documents()
    with torch.no_grad():
        states, expected = packed.hidden_states(tokens), padded.hidden_states(tokens)
    assert expected.std() > 0.1
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(packed, tokens), gradients(padded, tokens)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    largest = max(float(grad.abs().max()) for grad in theirs[1].values())
    for name, grad in theirs[1].items():
        torch.testing.assert_close(ours[1][name], grad, rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("architecture", VERIFIED)
def test_bf16_on_a_cpu_stays_near_single_precision(architecture, make_masked_lm):
    packed, _ = encoders(make_masked_lm, architecture)
    tokens = documents()
    embeddings, expected = gradients(packed, tokens)
    packed.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        halves, half_gradients = gradients(packed, tokens)
    assert halves.dtype == torch.float32
    assert float((halves - embeddings).norm() / embeddings.norm()) < 0.02
    both = [torch.cat([each[name].flatten() for name in expected]) for each in (half_gradients, expected)]
    assert float(torch.cosine_similarity(*both, dim=0)) > 0.95


@pytest.mark.parametrize("architecture", FALLBACK)
def test_others_warn_in_one_line_and_run_padded(architecture, make_masked_lm, caplog, capfd):
    with caplog.at_level(logging.WARNING):
        packed, padded = encoders(make_masked_lm, architecture)
    assert not packed.packed
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("splade_lit")]
    assert "padded" in warning
    assert "\n" not in warning
    assert type(packed.model).__name__ in warning
    assert capfd.readouterr().err.count("\n") <= 1
    tokens = documents((40, 3, 1, 17))
    with torch.no_grad():
        torch.testing.assert_close(packed(tokens), padded(tokens), rtol=1e-6, atol=1e-6)
        alone = torch.cat([packed(Tokens.from_lists([text])) for text in tokens])
        torch.testing.assert_close(packed(tokens), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", VERIFIED)
def test_a_document_is_the_same_alone_and_in_any_order(architecture, make_masked_lm):
    encoder = MlmDocumentEncoder(make_masked_lm(architecture, VOCAB, PADDING_ID), PADDING_ID)
    texts = list(documents())
    with torch.no_grad():
        together = encoder(Tokens.from_lists(texts))
        alone = torch.cat([encoder(Tokens.from_lists([text])) for text in texts])
        backwards = encoder(Tokens.from_lists(texts[::-1])).flip(0)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, backwards, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta"])
def test_positions_of_the_roberta_family_start_after_padding(architecture, make_masked_lm):
    packed, padded = encoders(make_masked_lm, architecture)
    assert packing.position_offset(packed.model) == PADDING_ID + 1
    assert packed.max_positions == 80 - (PADDING_ID + 1)
    longest = documents((packed.max_positions, 4))
    with torch.no_grad():
        torch.testing.assert_close(packed(longest), padded(longest), rtol=1e-5, atol=1e-5)


def test_the_window_of_modernbert_matters(make_masked_lm):
    # Else the test above would say nothing: with a wider window the same weights give other vectors.
    packed, _ = encoders(make_masked_lm, "modernbert")
    wide = make_masked_lm("modernbert", VOCAB, PADDING_ID)
    wide.config.sliding_window = 1000
    for module in wide.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 1001
    encoder = MlmDocumentEncoder(wide, PADDING_ID)
    assert encoder.packed
    with torch.no_grad():
        assert (packed(documents()) - encoder(documents())).abs().max() > 1e-2


def test_empty_documents_among_others(make_masked_lm):
    encoder = MlmDocumentEncoder(make_masked_lm("bert", VOCAB))
    tokens = Tokens.from_lists([[], [7, 8, 9], [], [20]])
    embeddings = encoder(tokens)
    torch.testing.assert_close(embeddings[[1, 3]], encoder(Tokens.from_lists([[7, 8, 9], [20]])))
    assert not embeddings[[0, 2]].any()
    assert encoder(Tokens.from_lists([[], []])).shape == (2, VOCAB)
    embeddings.sum().backward()


def attends_across(module, query, key, value, attention_mask, document_offsets=None, **kwargs):
    return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=False, **kwargs)


def without_positions(module, args, kwargs):
    """A hook that lets positions run on through the packed row."""
    return args, {name: value for name, value in kwargs.items() if name != "position_ids"}


@pytest.mark.parametrize("architecture", VERIFIED)
def test_probe_catches_attention_across_documents(architecture, make_masked_lm, monkeypatch):
    model = make_masked_lm(architecture, VOCAB, PADDING_ID)
    model.set_attn_implementation(packing.ATTENTION_NAME)
    assert packing.packing_is_exact(model, PADDING_ID)
    monkeypatch.setitem(AttentionInterface._global_mapping, packing.ATTENTION_NAME, attends_across)
    assert not packing.packing_is_exact(model, PADDING_ID)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "electra"])  # rotary positions may run on
def test_probe_catches_positions_that_run_on(architecture, make_masked_lm):
    model = make_masked_lm(architecture, VOCAB, PADDING_ID)
    model.set_attn_implementation(packing.ATTENTION_NAME)
    model.register_forward_pre_hook(without_positions, with_kwargs=True)
    assert not packing.packing_is_exact(model, PADDING_ID)


def test_probe_catches_it_in_weights_as_models_start_with(monkeypatch):
    # Small weights make small differences: the probe must tell them from rounding.
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    model = BertForMaskedLM(BertConfig(vocab_size=500, **shape))
    model.set_attn_implementation(packing.ATTENTION_NAME)
    assert packing.packing_is_exact(model, 0)
    with monkeypatch.context() as patch:
        patch.setitem(AttentionInterface._global_mapping, packing.ATTENTION_NAME, attends_across)
        assert not packing.packing_is_exact(model, 0)
    assert packing.packing_is_exact(model, 0)
    model.register_forward_pre_hook(without_positions, with_kwargs=True)
    assert not packing.packing_is_exact(model, 0)


def test_parts_get_their_own_mode_back():
    module = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
    module[1].eval()
    with packing.evaluation_mode(module):
        assert not any(part.training for part in module.modules())
    assert [module.training, module[0].training, module[1].training] == [True, True, False]


def test_dropout_is_drawn_in_training_only(make_masked_lm):
    model = make_masked_lm("bert", VOCAB)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for module in model.modules():
        if hasattr(module, "attention_head_size"):
            module.dropout.p = 0.5
    encoder = MlmDocumentEncoder(model)
    tokens = documents((12, 5))
    encoder.eval()
    with torch.no_grad():
        assert torch.equal(encoder(tokens), encoder(tokens))
        encoder.train()
        assert not torch.equal(encoder(tokens), encoder(tokens))


def test_attention_without_a_scale_takes_that_of_the_head_size():
    """With dropout too, where it does not come from torch's kernel."""
    inputs = [torch.randn(1, 2, 9, 16) for _ in range(3)]
    outputs = []
    for scaling in (None, 0.25, 0.5):
        torch.manual_seed(1)
        outputs.append(
            packing.packed_attention(
                nn.Module(), *inputs, None, 0.3, scaling, document_offsets=packing.DocumentOffsets((0, 5, 9))
            )[0]
        )
    torch.testing.assert_close(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
