"""Pruning of vectors for search: a cap, a least weight, a share of the largest; the same everywhere, and saved."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_runs import assert_same_weights, call, read_json
from scipy.sparse import csr_array
from sentence_transformers import SparseEncoder
from sentence_transformers.util import select_max_active_dims

from splade_lit import AsymmetricSparseEncoder, UserError, encode, evaluate, export, fit, load_query_side, search
from splade_lit.encoder.layout import read_pruning
from splade_lit.encoder.pruning import Pruning
from splade_lit.encoder.rows import prune_documents
from splade_lit.engines.onnx import OnnxDocumentEncoder
from splade_lit.engines.shards import read_corpus_vectors

CONFIG = "config_sentence_transformers.json"
TEXTS = ["the song of the river", "", "who wrote the book of the year " * 3, "heart disease"]
LONG_QUERY = "the song of a river and the film of the year in which that book was written by his author"
ALL = Pruning(max_document_active_dims=9, min_document_weight=0.3, min_document_weight_share=0.2)
LIMITS = [
    Pruning(),
    Pruning(max_document_active_dims=9),
    Pruning(max_query_active_dims=3),
    Pruning(max_query_active_dims=9, max_document_active_dims=9),
    Pruning(max_query_active_dims=3, max_document_active_dims=9),
    Pruning(min_document_weight=0.25),
    Pruning(min_document_weight_share=0.3),
    ALL,
]


def pruned_by_hand(row: list[float], pruning: Pruning) -> list[float]:
    """One document, limit by limit."""
    cap = pruning.max_document_active_dims or len(row)
    ranked = sorted((dim for dim in range(len(row)) if row[dim]), key=lambda dim: (-row[dim], dim))
    least = max(pruning.min_document_weight, pruning.min_document_weight_share * max(row))
    return [weight if dim in ranked[:cap] and weight >= least else 0.0 for dim, weight in enumerate(row)]


def test_every_combination_of_limits_on_small_documents():
    """All rows of three dims with weights of 0, 0.5, 1 and 2, under 60 combinations of limits."""
    rows = [list(row) for row in itertools.product([0.0, 0.5, 1.0, 2.0], repeat=3)]
    matrix = csr_array(np.array(rows, dtype=np.float32))
    before = matrix.copy()
    for cap, least, share in itertools.product([None, 1, 2, 3], [0.0, 0.5, 0.75, 3.0], [0.0, 0.25, 0.5, 1.0]):
        pruning = Pruning(None, cap, least, share)
        kept = prune_documents(matrix, pruning)
        np.testing.assert_array_equal(kept.toarray(), [pruned_by_hand(row, pruning) for row in rows])
        assert kept.has_sorted_indices
        assert kept.count_nonzero() == kept.nnz  # no zero is stored
        assert (kept.indices.dtype, kept.data.dtype) == (np.int32, np.float32)
    assert (matrix != before).nnz == 0


def test_ends_of_the_ranges():
    document = csr_array(np.array([[0.5, 2.0, 2.0], [0.0, 0.0, 0.0]], dtype=np.float32))
    assert prune_documents(document, Pruning()) is document
    assert prune_documents(document, Pruning(min_document_weight_share=1.0)).toarray().tolist() == [[0, 2, 2], [0] * 3]
    assert prune_documents(document, Pruning(min_document_weight=2.5)).nnz == 0
    assert prune_documents(document, Pruning(max_query_active_dims=1)).nnz == 3
    assert prune_documents(document[:0], ALL).shape == (0, 3)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="from 0 to 1"):
            prune_documents(document, Pruning(min_document_weight_share=share))
    with pytest.raises(ValueError, match="at least 1"):
        prune_documents(document, Pruning(max_document_active_dims=0))


def test_a_cap_keeps_what_sentence_transformers_keeps():
    weights = torch.rand(50, 40, generator=torch.Generator().manual_seed(1)) - 0.5
    weights[weights.abs() < 0.2] = 0
    for cap in (1, 7, 39, 100):
        ours = prune_documents(csr_array(weights.numpy()), Pruning(max_document_active_dims=cap))
        np.testing.assert_array_equal(ours.toarray(), select_max_active_dims(weights, cap).numpy())


@pytest.mark.parametrize("pruning", LIMITS, ids=lambda pruning: pruning.documents_keep)
def test_limits_are_saved_and_read_again(make_encoder, tmp_path, pruning):
    encoder, whole = make_encoder(pruning=pruning), make_encoder()
    encoder.save(tmp_path / "model")
    loaded = AsymmetricSparseEncoder.load(tmp_path / "model")
    assert loaded.pruning == encoder.pruning == pruning
    queries = [*TEXTS, LONG_QUERY]
    for texts, side in ((queries, "encode_query"), (TEXTS, "encode_document")):
        expected = getattr(encoder, side)(texts, convert_to_csr=True)
        assert (getattr(loaded, side)(texts, convert_to_csr=True) != expected).nnz == 0
    documents = prune_documents(whole.encode_document(TEXTS, convert_to_csr=True), pruning)
    assert (documents != encoder.encode_document(TEXTS, convert_to_csr=True)).nnz == 0
    # What a document is cut to leaves queries as they are, without a model too.
    cap = pruning.max_query_active_dims or encoder.vocab_size
    expected = whole.encode_query(queries, max_active_dims=cap, convert_to_csr=True)
    assert max(np.diff(expected.indptr)) == min(cap, 17)
    assert (loaded.encode_query(queries, convert_to_csr=True) != expected).nnz == 0
    assert (load_query_side(tmp_path / "model").encode(queries) != expected).nnz == 0


@pytest.mark.parametrize("pruning", LIMITS, ids=lambda pruning: pruning.documents_keep)
def test_sentence_transformers_gets_the_cap_of_documents(make_encoder, tmp_path, pruning):
    make_encoder(pruning=pruning).save(tmp_path / "model")
    peer = SparseEncoder(str(tmp_path / "model"), device="cpu")
    assert peer.max_active_dims == pruning.max_document_active_dims
    expected = make_encoder(pruning=Pruning(max_document_active_dims=pruning.max_document_active_dims))
    torch.testing.assert_close(
        peer.encode_document(TEXTS).to_dense(), expected.encode_document(TEXTS).to_dense(), rtol=1e-5, atol=1e-5
    )
    # Saved by it, the model has its one cap, of both sides.
    peer.save_pretrained(str(tmp_path / "again"), create_model_card=False)
    assert AsymmetricSparseEncoder.load(tmp_path / "again").pruning == Pruning().capped(peer.max_active_dims)


def test_the_peers_argument_means_what_it_meant(make_encoder):
    encoder = make_encoder(max_active_dims=7, pruning=Pruning(max_query_active_dims=3, min_document_weight_share=0.1))
    assert encoder.pruning == Pruning(3, 7, 0.0, 0.1)
    assert encoder.max_active_dims is None
    encoder.max_active_dims = 4
    assert encoder.pruning == Pruning(4, 4, 0.0, 0.1)
    assert encoder.max_active_dims == 4
    documents = encoder.encode_document(TEXTS, max_active_dims=11, convert_to_csr=True)
    expected = prune_documents(make_encoder().encode_document(TEXTS, convert_to_csr=True), Pruning(3, 11, 0.0, 0.1))
    assert (documents != expected).nnz == 0


def test_files_without_limits_are_what_they_were(make_encoder, tmp_path):
    for name, settings in (("whole", {}), ("cap", {"max_active_dims": 6})):
        make_encoder(**settings).save(tmp_path / name)
        config = read_json(tmp_path / name / CONFIG)
        assert "pruning" not in config
        assert config.get("max_active_dims") == settings.get("max_active_dims")


@pytest.mark.parametrize(
    "limits",
    [
        {"max_document_active_dims": 0},
        {"max_query_active_dims": "many"},
        {"min_document_weight": -1},
        {"min_document_weight": float("nan")},
        {"min_document_weight_share": 1.5},
    ],
    ids=str,
)
def test_limits_out_of_range_are_refused(make_encoder, tmp_path, limits):
    make_encoder().save(tmp_path / "model")
    path = tmp_path / "model" / CONFIG
    path.write_text(json.dumps(read_json(path) | {"pruning": asdict(Pruning()) | limits}))
    with pytest.raises(UserError, match=next(iter(limits))):
        AsymmetricSparseEncoder.load(tmp_path / "model")


def options(pruning: Pruning, *, documents_only: bool = False) -> list[Any]:
    limits = asdict(pruning).items()
    words = [
        [f"--{name.replace('_', '-')}", value or 0] for name, value in limits if not documents_only or "doc" in name
    ]
    return list(itertools.chain.from_iterable(words))


@pytest.fixture
def model(make_encoder, tmp_path) -> Path:
    """A saved model with limits of its own, which options replace."""
    make_encoder(pruning=Pruning(max_query_active_dims=8, max_document_active_dims=4)).save(tmp_path / "model")
    return tmp_path / "model"


def test_the_export_has_the_limits(make_encoder, model):
    """Those of the model, but for what options say."""
    arguments = ["--max-document-active-dims", 9, "--min-document-weight-share", 0.2]
    outcome = call(export.main, "onnx", model, *arguments)
    assert outcome.code == 0, outcome.err
    pruning = Pruning(8, 9, 0.0, 0.2)
    graph, encoder = OnnxDocumentEncoder(model / "onnx"), make_encoder(pruning=pruning)
    assert graph.pruning == pruning
    documents = graph.encode_document_tokens(graph.tokenisation.documents(TEXTS))
    expected = encoder.encode_document(TEXTS, convert_to_csr=True)
    assert expected.nnz
    np.testing.assert_array_equal(documents.indices, expected.indices)
    np.testing.assert_allclose(documents.toarray(), expected.toarray(), atol=1e-4)
    queries = graph.encode_query_tokens(graph.tokenisation.queries([LONG_QUERY]))
    assert (queries != encoder.encode_query([LONG_QUERY], convert_to_csr=True)).nnz == 0
    # Exports of before have one number for both sides.
    config = read_json(model / "onnx" / "config.json")
    kept = {name: value for name, value in config.items() if name not in asdict(pruning)}
    (model / "onnx" / "config.json").write_text(json.dumps(kept | {"max_active_dims": 5}))
    assert OnnxDocumentEncoder(model / "onnx").pruning == Pruning(5, 5)


def test_vectors_on_disk_have_the_limits(make_encoder, model, tmp_path, caplog):
    (tmp_path / "docs.txt").write_text("\n".join(TEXTS))
    arguments = ["--model", model, "--corpus", tmp_path / "docs.txt", "--output"]
    for name, given, pruning in (("own", [], Pruning(8, 4)), ("other", options(ALL, documents_only=True), ALL)):
        outcome = call(encode.main, *arguments, tmp_path / name, *given)
        assert outcome.code == 0, outcome.err
        _, vectors, header = read_corpus_vectors(tmp_path / name)
        expected = make_encoder(pruning=pruning).encode_document([text for text in TEXTS if text], convert_to_csr=True)
        np.testing.assert_array_equal(vectors.indices, expected.indices)
        assert header.pruning == pruning.of_documents
        caplog.clear()
        found = call(search.main, "--model", model, "--vectors", tmp_path / name, "the song")
        assert found.code == 0, found.err
        assert ("Kept of a document in these vectors" in caplog.text) == (name == "other")
    again = call(encode.main, *arguments, tmp_path / "own", "--max-document-active-dims", 5)
    assert again.code == 2
    assert "vectors of another pruning" in again.err
    # A folder of before these limits says nothing of them.
    header = read_json(tmp_path / "own" / "corpus.json")
    del header["pruning"]
    (tmp_path / "own" / "corpus.json").write_text(json.dumps(header))
    assert read_corpus_vectors(tmp_path / "own")[2].pruning == Pruning()


def test_training_sees_whole_vectors_and_evaluation_pruned_ones(world, tmp_path):
    limits = {f"model.{name}": value for name, value in asdict(ALL).items() if value}
    for name, changes in (("whole", {}), ("pruned", limits | {"model.max_query_active_dims": 2})):
        outcome = call(fit.main, "--config", world.config(tmp_path / name, changes))
        assert outcome.code == 0, outcome.err
    assert_same_weights(tmp_path / "pruned", tmp_path / "whole")
    encoder = AsymmetricSparseEncoder.load(tmp_path / "pruned" / "model")
    assert encoder.pruning == Pruning(2, 9, 0.3, 0.2)
    after = read_json(tmp_path / "pruned" / "metrics.json")["after"]
    assert after["NanoBEIR_mean_corpus_active_dims"] <= 9
    assert after["NanoBEIR_mean_query_active_dims"] <= 2
    whole = read_json(tmp_path / "whole" / "metrics.json")["after"]
    assert whole["NanoBEIR_mean_corpus_active_dims"] > 9
    # The saved model is evaluated as in its run, and the other one with options; 0 lifts a limit.
    for name, given, expected in (
        ("pruned", [], after),
        ("whole", options(encoder.pruning), after),
        ("pruned", options(Pruning()), whole),
    ):
        arguments = ["--tasks", world.tasks, "--output", tmp_path / "figures.json", *given]
        assert call(evaluate.main, "--model", tmp_path / name / "model", *arguments).code == 0
        assert read_json(tmp_path / "figures.json")["model"] == pytest.approx(expected, rel=1e-5)
    # Training on goes on with the limits, unless others are given.
    base = str(tmp_path / "pruned" / "model")
    assert AsymmetricSparseEncoder.from_base(base).pruning == encoder.pruning
    changed = AsymmetricSparseEncoder.from_base(base, max_document_active_dims=0, min_document_weight_share=0.5)
    assert changed.pruning == Pruning(2, None, 0.3, 0.5)
    assert "at most 9 dims" in (tmp_path / "pruned" / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    "option",
    [("--max-document-active-dims", "-1"), ("--min-document-weight", "x"), ("--min-document-weight-share", "2")],
)
def test_nonsense_ends_before_anything_is_loaded(option, tmp_path):
    for main, arguments in (
        (evaluate.main, ["--model", tmp_path / "none"]),
        (encode.main, ["--model", tmp_path / "none", "--corpus", "x", "--output", tmp_path / "y"]),
        (export.main, ["onnx", tmp_path / "none"]),
    ):
        outcome = call(main, *arguments, *option)
        assert outcome.code == 2
        assert option[0] in outcome.errors[0]
        assert option[1] in outcome.errors[0]


@pytest.mark.parametrize(
    "setting", [{"model.min_document_weight_share": 1.5}, {"model.max_document_active_dims": -2}], ids=str
)
def test_settings_out_of_range(world, tmp_path, setting):
    outcome = call(fit.main, "--config", world.config(tmp_path / "run", setting))
    assert outcome.code == 2
    assert next(iter(setting)) in outcome.errors[0]


def test_limits_of_files_of_strangers():
    assert read_pruning({"max_active_dims": 10**30}).max_document_active_dims == 2**31 - 1
    for value in (True, float("inf"), 0, "9"):
        with pytest.raises(UserError, match=f"max_document_active_dims is {value!r} in the model's JSON files"):
            read_pruning({"pruning": {"max_document_active_dims": value}})
