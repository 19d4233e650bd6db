"""The document encoder around the sparse head: what models it takes, compiled, and with adapters."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from transformers import EsmConfig, EsmForMaskedLM, MobileBertConfig, MobileBertForMaskedLM

from splade_lit.core.errors import UserError
from splade_lit.core.tokens import Tokens
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.model import AsymmetricSparseEncoder

TEXTS = ["the song of the musical", "river and water " * 5, "heart disease"]
SMALL = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    "make",
    [
        lambda: MobileBertForMaskedLM(
            MobileBertConfig(**SMALL, embedding_size=16, intermediate_size=32, intra_bottleneck_size=16)
        ),
        lambda: EsmForMaskedLM(EsmConfig(**SMALL, intermediate_size=32, mask_token_id=4)),
    ],
    ids=["mobilebert", "esm"],
)
def test_heads_that_use_their_decoder_otherwise_are_refused(make):
    with pytest.raises(UserError, match=r"ForMaskedLM makes more of its logits .* use another model, such as BERT"):
        MlmDocumentEncoder(make())


def test_logits_that_are_bent_at_the_end_are_refused(make_masked_lm):
    model = make_masked_lm("bert", 120)
    model.cls.register_forward_hook(lambda module, args, logits: logits.tanh())
    with pytest.raises(UserError, match="makes more of its logits"):
        MlmDocumentEncoder(model)


def test_weights_that_are_not_finite_are_told(make_masked_lm):
    model = make_masked_lm("bert", 120)
    with torch.no_grad():
        next(iter(model.parameters()))[:] = torch.nan
    with pytest.raises(UserError, match="logits of BertForMaskedLM are not finite, so its weights are damaged"):
        MlmDocumentEncoder(model)


@pytest.mark.parametrize("tile_columns", [1, 50, 10_000])
def test_tiles_are_of_the_size_that_is_set(make_masked_lm, tile_columns):
    tokens = Tokens.from_lists([[7, 8, 9], [20, 21]])
    expected = MlmDocumentEncoder(make_masked_lm("bert", 120))(tokens)
    ours = MlmDocumentEncoder(make_masked_lm("bert", 120), tile_columns=tile_columns)(tokens)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_tiles_without_a_column_are_refused(make_masked_lm):
    with pytest.raises(UserError, match="tile_columns is 0; it must be at least 1"):
        MlmDocumentEncoder(make_masked_lm("bert", 120), tile_columns=0)


def some_documents(number: int) -> Tokens:
    random = torch.Generator().manual_seed(number)
    lengths = torch.randint(2, 30, (number,), generator=random).tolist()
    return Tokens.from_lists([torch.randint(5, 120, (length,), generator=random).tolist() for length in lengths])


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "modernbert"])
def test_a_compiled_model_takes_any_number_of_documents(make_masked_lm, architecture):
    encoder, plain = (MlmDocumentEncoder(make_masked_lm(architecture, 120)) for _ in range(2))
    torch._dynamo.reset()
    encoder.model.compile(backend="aot_eager")
    batches = [some_documents(number) for number in range(1, 16)]
    with torch.no_grad():
        for batch in batches[:5]:
            encoder(batch)
        graphs = counters["stats"]["unique_graphs"]
        assert graphs > 0
        for batch in batches:
            torch.testing.assert_close(encoder(batch), plain(batch), rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs
    torch._dynamo.reset()


@pytest.mark.parametrize("targets", [["query", "value"], "all-linear"], ids=["attention", "all-linear"])
def test_a_model_with_adapters_is_saved_merged(make_encoder, tmp_path, targets):
    encoder = make_encoder()
    settings = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    encoder.document.model = get_peft_model(encoder.document.model, settings).eval()
    expected = encoder.encode_document(TEXTS).to_dense()
    trained = {name: parameter.clone() for name, parameter in encoder.named_parameters()}
    encoder.save(tmp_path / "model")
    loaded = AsymmetricSparseEncoder.load(tmp_path / "model")
    torch.testing.assert_close(loaded.encode_document(TEXTS).to_dense(), expected, rtol=1e-4, atol=1e-4)
    after = dict(encoder.named_parameters())
    assert after.keys() == trained.keys()
    assert all(torch.equal(after[name], trained[name]) for name in trained)


def test_adapters_of_tied_embeddings_are_refused(make_encoder, tmp_path):
    encoder = make_encoder()
    settings = LoraConfig(r=4, target_modules=["word_embeddings"], init_lora_weights=False)
    encoder.document.model = get_peft_model(encoder.document.model, settings).eval()
    with pytest.raises(UserError, match="adapter of input embeddings that are the"):
        encoder.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
