import inspect
import io
import logging

import numpy as np
import pytest
import rich
import torch
from rich.console import Console
from scipy.sparse import csr_array
from sentence_transformers import SparseEncoder
from torch import Tensor

from splade_lit.core.errors import UserError
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query import IdfQueryEncoder

TEXTS = [
    "who wrote the song of the musical",
    "",
    "the " * 600,
    "emoji \U0001f600 and \U0001f44d\U0001f3fd, caf\u00e9, \u4e2d\u6587 and zebra",
    "song song song river, River RIVER!",
    "a cell protein is the cause of heart disease",
    "   ",
]


@pytest.fixture
def peer(encoder, tmp_path) -> SparseEncoder:
    encoder.save(tmp_path / "model")
    return SparseEncoder(str(tmp_path / "model"), device="cpu")


def dense(vectors) -> Tensor:
    return vectors.to_dense() if isinstance(vectors, Tensor) else torch.from_numpy(vectors.toarray())


def assert_same(ours: Tensor, expected: Tensor) -> None:
    assert type(ours) is type(expected)
    assert ours.shape == expected.shape
    assert ours.dtype == expected.dtype
    assert ours.layout == expected.layout
    torch.testing.assert_close(ours.to_dense(), expected.to_dense(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["encode_query", "encode_document"])
def test_arguments_are_the_peers(side):
    ours = inspect.signature(getattr(AsymmetricSparseEncoder, side)).parameters
    theirs = inspect.signature(getattr(SparseEncoder, side)).parameters
    shared = [name for name in theirs if name not in ("pool", "chunk_size", "kwargs")]
    assert list(ours)[: len(shared)] == shared
    for name in shared:
        assert ours[name].default == theirs[name].default, name


@pytest.mark.parametrize("side", ["encode_query", "encode_document"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"convert_to_sparse_tensor": False},
        {"max_active_dims": 5},
        {"prompt": "query: "},
        {"prompt_name": "query"},
        {"save_to_cpu": True},
        {"batch_size": 2, "show_progress_bar": False},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "inputs", [TEXTS, TEXTS[0], TEXTS[1], TEXTS[:1], []], ids=["all", "one", "empty", "list", "none"]
)
def test_vectors_equal_the_peers(encoder, peer, side, arguments, inputs):
    ours, expected = getattr(encoder, side)(inputs, **arguments), getattr(peer, side)(inputs, **arguments)
    assert_same(ours, expected)


@pytest.mark.parametrize("side", ["encode_query", "encode_document"])
@pytest.mark.parametrize("sparse", [True, False])
def test_lists_of_single_vectors(encoder, peer, side, sparse):
    arguments = {"convert_to_tensor": False, "convert_to_sparse_tensor": sparse}
    ours, expected = getattr(encoder, side)(TEXTS, **arguments), getattr(peer, side)(TEXTS, **arguments)
    assert isinstance(ours, list)
    assert len(ours) == len(TEXTS)
    for one, other in zip(ours, expected, strict=True):
        assert_same(one, other)
    assert getattr(encoder, side)([], **arguments) == []
    assert_same(encoder.similarity(ours, ours), peer.similarity(dense_stack(expected), dense_stack(expected)))


def dense_stack(vectors: list[Tensor]) -> Tensor:
    return torch.stack([vector.to_dense() for vector in vectors])


@pytest.mark.parametrize("architecture", ["distilbert", "roberta", "modernbert", "electra", "xlm-roberta", "mpnet"])
@pytest.mark.parametrize(("pooling", "activation"), [("max", "relu"), ("sum", "log1p_relu")])
def test_other_models_and_poolings(make_encoder, tmp_path, architecture, pooling, activation):
    encoder = make_encoder(architecture, pooling, activation)
    encoder.save(tmp_path / "model")
    peer = SparseEncoder(str(tmp_path / "model"), device="cpu")
    assert_same(encoder.encode_document(TEXTS), peer.encode_document(TEXTS))
    assert_same(encoder.encode_query(TEXTS), peer.encode_query(TEXTS))


def test_csr(encoder):
    for side in (encoder.encode_query, encoder.encode_document):
        matrix = side(TEXTS, convert_to_csr=True)
        assert isinstance(matrix, csr_array)
        assert matrix.dtype == np.float32
        assert matrix.indices.dtype == matrix.indptr.dtype == np.int32
        assert matrix.has_sorted_indices
        assert (matrix.data != 0).all()
        assert torch.equal(torch.from_numpy(matrix.toarray()), side(TEXTS).to_dense())
        assert side(TEXTS[0], convert_to_csr=True).shape == (1, encoder.vocab_size)
        assert side([], convert_to_csr=True).shape == (0, encoder.vocab_size)


def test_any_sequence_of_texts(encoder):
    expected = encoder.encode_document(TEXTS).to_dense()
    assert torch.equal(encoder.encode_document(tuple(TEXTS)).to_dense(), expected)
    assert torch.equal(encoder.encode_document(np.array(TEXTS, dtype=object)).to_dense(), expected)


def test_similarity_equals_the_peers(encoder, peer):
    queries, documents = encoder.encode_query(TEXTS), encoder.encode_document(TEXTS)
    expected = peer.similarity(queries, documents)
    for q in (queries, queries.to_dense(), encoder.encode_query(TEXTS, convert_to_csr=True)):
        for d in (documents, documents.to_dense(), encoder.encode_document(TEXTS, convert_to_csr=True)):
            assert_same(encoder.similarity(q, d), expected)
    one = encoder.encode_query(TEXTS[0])
    assert_same(encoder.similarity(one, documents), peer.similarity(one, documents))
    assert_same(encoder.similarity(one, one), peer.similarity(one, one))


def test_sparsity_equals_the_peers(encoder, peer):
    for vectors in (encoder.encode_document(TEXTS), encoder.encode_query(TEXTS[0]), encoder.encode_query(TEXTS)):
        expected = peer.sparsity(vectors)
        assert encoder.sparsity(vectors) == pytest.approx(expected)
        assert encoder.sparsity(vectors.to_dense()) == pytest.approx(expected)
    assert encoder.sparsity(encoder.encode_query(TEXTS, convert_to_csr=True)) == pytest.approx(expected)
    assert encoder.sparsity(torch.zeros(0, 7)) == peer.sparsity(torch.zeros(0, 7))
    assert encoder.sparsity(torch.zeros(2, 7)) == peer.sparsity(torch.zeros(2, 7))


@pytest.mark.parametrize("top_k", [None, 1, 3, 10_000])
def test_decode_equals_the_peers(encoder, peer, top_k):
    documents = encoder.encode_document(TEXTS)
    expected = peer.decode(documents, top_k=top_k)
    for vectors in (documents, documents.to_dense(), encoder.encode_document(TEXTS, convert_to_csr=True)):
        assert encoder.decode(vectors, top_k=top_k) == expected
    assert encoder.decode(documents[0], top_k=top_k) == peer.decode(documents[0], top_k=top_k)
    queries = encoder.encode_query(TEXTS)
    assert encoder.decode(queries, top_k=top_k) == peer.decode(queries, top_k=top_k)
    assert encoder.decode(queries)[1] == []


def test_decode_refuses_nothing_to_show(encoder):
    with pytest.raises(ValueError, match="top_k"):
        encoder.decode(encoder.encode_query("song"), top_k=0)


def test_intersection_equals_the_peers(encoder, peer):
    with torch.no_grad():  # a negative weight takes from the score: it is no shared term
        encoder.idf_weights[encoder.tokenizer.convert_tokens_to_ids("song")] = -1.0
    query = encoder.encode_query("the song of the musical")
    documents = encoder.encode_document(TEXTS)
    for other in (documents, documents[0], documents[1]):
        expected = peer.intersection(query, other)
        assert_same(encoder.intersection(query, other).coalesce(), expected.coalesce())
        assert_same(encoder.intersection(query.to_dense(), other.to_dense()).coalesce(), expected.coalesce())
    matrix = encoder.intersection(query, encoder.encode_document(TEXTS, convert_to_csr=True))
    torch.testing.assert_close(dense(matrix), dense(encoder.intersection(query, documents)))
    scores = encoder.similarity(query, documents[0])
    shares = encoder.intersection(encoder.encode_query("the of musical"), documents[0])
    assert float(shares.to_dense().sum()) > 0
    assert float(scores) < float(shares.to_dense().sum())
    with pytest.raises(ValueError, match="one vector"):
        encoder.intersection(documents, documents)
    with pytest.raises(ValueError, match="of its size"):
        encoder.intersection(query, torch.zeros(3))


def test_scores_are_what_the_terms_add_up_to(encoder):
    query, document = encoder.encode_query("the song of the river"), encoder.encode_document(TEXTS[0])
    terms = encoder.decode(encoder.intersection(query, document))
    assert sum(weight for _, weight in terms) == pytest.approx(float(encoder.similarity(query, document)), rel=1e-5)
    assert {token for token, _ in terms} <= {"the", "song", "of", "river"}


def test_max_active_dims_keeps_the_peers_sets(make_encoder, tmp_path):
    encoder = make_encoder(max_active_dims=7)
    encoder.save(tmp_path / "model")
    peer = SparseEncoder(str(tmp_path / "model"), device="cpu")
    assert peer.max_active_dims == 7
    assert_same(encoder.encode_document(TEXTS), peer.encode_document(TEXTS))
    assert_same(encoder.encode_query(TEXTS), peer.encode_query(TEXTS))
    assert encoder.sparsity(encoder.encode_document(TEXTS))["active_dims"] <= 7
    assert_same(encoder.encode_document(TEXTS, max_active_dims=3), peer.encode_document(TEXTS, max_active_dims=3))
    for side in (encoder.encode_query, encoder.encode_document):
        with pytest.raises(ValueError, match="max_active_dims"):
            side(TEXTS, max_active_dims=0)


def test_token_entrances_honour_the_models_limit(make_encoder):
    from splade_lit.core.tokenisation import tokenize_documents, tokenize_queries

    encoder = make_encoder(max_active_dims=2)
    queries = tokenize_queries(encoder.tokenizer, TEXTS, encoder.max_query_tokens)
    documents = tokenize_documents(encoder.tokenizer, TEXTS, encoder.max_document_tokens)
    assert (encoder.encode_query_tokens(queries) != encoder.encode_query(TEXTS, convert_to_csr=True)).nnz == 0
    assert (encoder.encode_document_tokens(documents) != encoder.encode_document(TEXTS, convert_to_csr=True)).nnz == 0


def test_prompts_are_put_before_the_text(make_encoder, tmp_path, caplog):
    encoder = make_encoder(prompts={"query": "who is ", "document": "musical: ", "film": "film "})
    encoder.save(tmp_path / "model")
    peer = SparseEncoder(str(tmp_path / "model"), device="cpu")
    for arguments in ({}, {"prompt_name": "film"}, {"prompt": ""}, {"prompt": "river "}):
        assert_same(encoder.encode_query(TEXTS, **arguments), peer.encode_query(TEXTS, **arguments))
        assert_same(encoder.encode_document(TEXTS, **arguments), peer.encode_document(TEXTS, **arguments))
    assert not torch.equal(encoder.encode_query("song").to_dense(), encoder.encode_query("song", prompt="").to_dense())
    with pytest.raises(ValueError, match="no prompt named 'other'"):
        encoder.encode_query("song", prompt_name="other")


def test_both_sides_have_their_own_limit(make_encoder):
    encoder = make_encoder(max_query_tokens=2, max_document_tokens=5)
    assert encoder.sparsity(encoder.encode_query("the song of a river"))["active_dims"] == 2
    long, cut = encoder.encode_document(["the song of a river and a queen", "the song of"]).to_dense()
    torch.testing.assert_close(long, cut)


def test_limits_may_be_set_later(make_encoder, tmp_path):
    encoder, long = make_encoder(max_query_tokens=3, max_document_tokens=5), ["king " * 2 + "river song of the musical"]
    other = make_encoder(max_query_tokens=5, max_document_tokens=8)
    encoder.max_query_tokens, encoder.max_document_tokens = 5, 8
    encoder.save(tmp_path / "model")
    for one in (encoder, AsymmetricSparseEncoder.load(tmp_path / "model")):
        assert (one.max_query_tokens, one.max_document_tokens) == (5, 8)
        torch.testing.assert_close(one.encode_query(long).to_dense(), other.encode_query(long).to_dense())
        torch.testing.assert_close(one.encode_document(long).to_dense(), other.encode_document(long).to_dense())
    with pytest.raises(UserError, match="max_document_tokens is 2; it must be at least 3"):
        encoder.max_document_tokens = 2
    with pytest.raises(UserError, match="max_query_tokens is 0; it must be at least 1"):
        encoder.max_query_tokens = 0
    assert (encoder.max_query_tokens, encoder.max_document_tokens) == (5, 8)


def test_more_tokens_than_positions_are_refused(make_encoder):
    with pytest.raises(UserError, match=r"max_document_tokens is 81; .* at least 3, .* and at most 80, the pos"):
        make_encoder(max_document_tokens=81)
    encoder = make_encoder(max_document_tokens=80)
    assert encoder.encode_document("the " * 600).shape == (encoder.vocab_size,)


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 10_000])
def test_order_and_batches_do_not_matter(encoder, tokens_per_batch):
    from splade_lit.core.tokenisation import tokenize_documents

    documents = tokenize_documents(encoder.tokenizer, TEXTS * 3, encoder.max_document_tokens)
    expected = encoder.encode_document(TEXTS).to_dense().repeat(3, 1)
    matrix = encoder.encode_document_tokens(documents, tokens_per_batch=tokens_per_batch)
    torch.testing.assert_close(dense(matrix), expected, rtol=1e-5, atol=1e-5)
    assert matrix.has_sorted_indices


def test_training_mode_comes_back_and_dropout_is_off(encoder):
    encoder.train()
    first, second = encoder.encode_document(TEXTS), encoder.encode_document(TEXTS)
    assert torch.equal(first.to_dense(), second.to_dense())
    assert encoder.training
    assert encoder.document.model.training
    assert not first.requires_grad


def test_progress_is_shown_on_request(encoder, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=terminal, force_terminal=True, width=100))
    encoder.encode_document(TEXTS)
    assert terminal.getvalue() == ""
    encoder.encode_document(TEXTS, show_progress_bar=True)
    assert "documents" in terminal.getvalue()


@pytest.mark.parametrize("max_tokens", [1, 2])
def test_documents_keep_a_token_beside_the_special_ones(make_encoder, max_tokens):
    with pytest.raises(UserError, match=rf"max_document_tokens is {max_tokens}; it must be at least 3"):
        make_encoder(max_document_tokens=max_tokens)
    assert make_encoder(max_document_tokens=3).encode_document("the song of the musical").to_dense().any()


def test_sides_of_different_size_are_refused(encoder):
    with pytest.raises(ValueError, match="query side has 3 dims"):
        AsymmetricSparseEncoder(IdfQueryEncoder(torch.ones(3)), encoder.document, encoder.tokenizer)


@pytest.mark.parametrize("difference", [-20, 13], ids=["tokenizer larger", "model larger"])
def test_vocabularies_of_different_size(make_masked_lm, tiny_tokenizer, tmp_path, difference, caplog):
    model = make_masked_lm("modernbert", len(tiny_tokenizer) + difference)
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    with caplog.at_level(logging.WARNING):
        encoder = AsymmetricSparseEncoder.from_base(str(tmp_path / "base"))
    assert encoder.vocab_size == len(encoder.idf_weights) == len(tiny_tokenizer)
    documents = encoder.encode_document(TEXTS).to_dense()
    assert torch.isfinite(documents).all()
    shared = min(len(tiny_tokenizer), len(tiny_tokenizer) + difference)
    if difference > 0:  # what the tokenizer can say keeps its meaning
        whole = MlmDocumentEncoder(model)
        from splade_lit.core.tokenisation import tokenize_documents
        from splade_lit.core.tokens import Tokens

        ids = tokenize_documents(tiny_tokenizer, TEXTS, encoder.max_document_tokens)
        expected = whole(Tokens.from_lists(ids)).detach()[:, :shared]
        torch.testing.assert_close(documents, expected, rtol=1e-5, atol=1e-5)
    encoder.save(tmp_path / "saved")
    loaded = AsymmetricSparseEncoder.load(tmp_path / "saved")
    torch.testing.assert_close(loaded.encode_document(TEXTS).to_dense(), documents, rtol=1e-5, atol=1e-5)
    peer = SparseEncoder(str(tmp_path / "saved"), device="cpu")
    assert_same(encoder.encode_document(TEXTS), peer.encode_document(TEXTS))
    assert peer.similarity(peer.encode_query(TEXTS), peer.encode_document(TEXTS)).shape == (len(TEXTS), len(TEXTS))
