import json

import numpy as np
import pytest
import torch
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
from torch.utils._python_dispatch import TorchDispatchMode

from splade_lit.core.errors import UserError
from splade_lit.core.tokenisation import tokenize_queries
from splade_lit.core.tokens import Tokens
from splade_lit.encoder.query import IdfQueryEncoder, idf_from_document_frequencies
from splade_lit.encoder.table import idf_from_json
from splade_lit.losses.penalties import flops_penalty, l1_penalty

QUERIES = [
    "who was the king of the country",
    "the the THE the",
    "",
    "[CLS] song [SEP]",
    "zebra 😀 ∮ song",
    "   \n\t ",
    "music " * 100,
]


@pytest.fixture
def query(tiny_tokenizer) -> IdfQueryEncoder:
    return IdfQueryEncoder(torch.randn(len(tiny_tokenizer), generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def token_ids(tiny_tokenizer) -> list[np.ndarray]:
    return tokenize_queries(tiny_tokenizer, QUERIES, 64)


@pytest.fixture
def peer(tiny_tokenizer, query) -> SparseStaticEmbedding:
    return SparseStaticEmbedding(tiny_tokenizer, query.idf_weights.detach())


def peer_vectors(peer: SparseStaticEmbedding, texts: list[str]) -> torch.Tensor:
    return peer(peer.preprocess(texts))["sentence_embedding"].detach()


def test_presence_counts_once_and_special_tokens_are_not_added(tiny_tokenizer, token_ids):
    vocabulary = tiny_tokenizer.get_vocab()
    assert token_ids[1].tolist() == [vocabulary["the"]]
    assert not len(token_ids[2])
    assert not len(token_ids[5])
    # What a user types counts, special or not; what the vocabulary lacks is one token, [UNK].
    assert set(token_ids[3]) == {vocabulary["[CLS]"], vocabulary["song"], vocabulary["[SEP]"]}
    assert vocabulary["[UNK]"] in token_ids[4]
    assert all(ids.dtype == np.int32 and (np.diff(ids) > 0).all() for ids in token_ids)


class Sizes(TorchDispatchMode):
    """How many numbers the largest tensor has that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        output = operation(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor):
            self.largest = max(self.largest, output.untyped_storage().nbytes() // output.element_size())
        return output


@pytest.mark.parametrize("penalty", [flops_penalty, l1_penalty])
def test_penalties_of_the_mean_query_are_those_of_all(query, token_ids, penalty):
    tokens = Tokens.from_lists(token_ids)
    penalty(query(tokens)).backward()
    expected, query.idf_weights.grad = query.idf_weights.grad, None
    ours = penalty(query.mean_embedding(tokens)[None])
    torch.testing.assert_close(ours, penalty(query(tokens)), rtol=1e-5, atol=1e-5)
    ours.backward()
    torch.testing.assert_close(query.idf_weights.grad, expected, rtol=1e-5, atol=1e-6)


def test_training_makes_nothing_of_queries_times_vocabulary(query):
    vocab = len(query.idf_weights)
    tokens = Tokens.from_lists([[7, 8, 9]] * 40)
    documents = torch.rand(10, vocab, requires_grad=True)
    with Sizes() as sizes:
        loss = query.scores(tokens, documents).sum() + flops_penalty(query.mean_embedding(tokens)[None])
        loss.backward()
    assert sizes.largest <= 10 * vocab
    with Sizes() as sizes:
        flops_penalty(query(tokens))
    assert sizes.largest == 40 * vocab  # the plain way, by the same measure


def test_vectors_equal_the_peers(query, token_ids, peer):
    expected = peer_vectors(peer, QUERIES)
    torch.testing.assert_close(query(Tokens.from_lists(token_ids)), expected, rtol=0, atol=0)
    matrix = query.encode(token_ids)
    assert matrix.dtype == np.float32
    assert matrix.indices.dtype == matrix.indptr.dtype == np.int32
    np.testing.assert_array_equal(matrix.toarray(), expected.numpy())
    assert matrix.has_sorted_indices


def test_zero_weights_are_no_entries(query, token_ids):
    with torch.no_grad():
        query.idf_weights[token_ids[0][0]] = 0
    matrix = query.encode(token_ids)
    assert (matrix.data != 0).all()
    assert matrix[[0]].nnz == len(token_ids[0]) - 1
    active = query.active_dims(Tokens.from_lists(token_ids))
    assert float(active) == pytest.approx(matrix.nnz / len(QUERIES))


def test_no_queries(query):
    assert query.encode([]).shape == (0, len(query.idf_weights))
    assert query(Tokens.from_lists([])).shape == (0, len(query.idf_weights))
    assert float(query.active_dims(Tokens.from_lists([]))) == 0


def test_scores_equal_the_dense_product(query, token_ids):
    tokens = Tokens.from_lists(token_ids)
    documents = torch.rand(9, len(query.idf_weights), generator=torch.Generator().manual_seed(1), requires_grad=True)
    upstream = torch.randn(len(tokens), 9, generator=torch.Generator().manual_seed(2))
    results = []
    for scores in (query.scores(tokens, documents), query(tokens) @ documents.T):
        grads = torch.autograd.grad(scores, [query.idf_weights, documents], upstream)
        results.append((scores.detach(), *grads))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert results[0][0][2].abs().max() == 0  # the empty query


def test_frozen_weights_take_no_gradient(token_ids, tiny_tokenizer):
    query = IdfQueryEncoder(torch.ones(len(tiny_tokenizer)), frozen=True)
    assert query.frozen
    documents = torch.rand(3, len(tiny_tokenizer), requires_grad=True)
    query.scores(Tokens.from_lists(token_ids), documents).sum().backward()
    assert query.idf_weights.grad is None
    assert documents.grad is not None


def test_projection_leaves_no_negative_weight(query):
    before = query.idf_weights.detach().clone()
    assert (before < 0).any()
    query.project_nonnegative()
    assert torch.equal(query.idf_weights.detach(), before.clamp(min=0))
    assert query.idf_weights.requires_grad


def test_the_table_is_a_copy():
    weights = torch.ones(5)
    query = IdfQueryEncoder(weights)
    query.project_nonnegative()
    with torch.no_grad():
        query.idf_weights.zero_()
    assert weights.sum() == 5


def test_json_table_equals_the_peers(tmp_path, tiny_tokenizer):
    vocabulary = list(tiny_tokenizer.get_vocab())
    table = {token: float(i % 7) + 0.25 for i, token in enumerate(vocabulary) if i % 3}
    path = tmp_path / "idf.json"
    path.write_text(json.dumps(table))
    expected = SparseStaticEmbedding.from_json(str(path), tokenizer=tiny_tokenizer).weight.detach()
    weights = idf_from_json(path, tiny_tokenizer.get_vocab(), len(tiny_tokenizer))
    np.testing.assert_array_equal(weights, expected.numpy())
    assert weights[tiny_tokenizer.get_vocab()[vocabulary[0]]] == 0
    # Entries that are no token would overwrite [UNK] in the peer; here they are left out.
    path.write_text(json.dumps(table | {"nosuchtoken": 99.0}))
    np.testing.assert_array_equal(
        idf_from_json(path, tiny_tokenizer.get_vocab(), len(tiny_tokenizer)), expected.numpy()
    )
    assert len(idf_from_json(path, tiny_tokenizer.get_vocab(), len(tiny_tokenizer) + 3)) == len(tiny_tokenizer) + 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("plain text", "JSON object"),
        ("[1, 2]", "JSON object"),
        ('{"the": "many"}', "JSON object"),
        ('{"the": null}', "JSON object"),
        ('{"the": NaN}', "finite"),
        ('{"the": Infinity}', "finite"),
        ("{}", "shares no token"),
        ('{"zzz": 1.0}', "shares no token"),
        (None, "cannot be read"),
    ],
)
def test_bad_tables_are_told(tmp_path, tiny_tokenizer, content, message):
    path = tmp_path / "idf.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        idf_from_json(path, tiny_tokenizer.get_vocab(), len(tiny_tokenizer))
    assert "\n" not in str(error.value)


def test_document_frequencies_give_falling_weights():
    weights = idf_from_document_frequencies(np.array([0, 1, 10, 50, 100]), 100)
    assert weights.dtype == torch.float32
    assert (weights.diff() < 0).all()
    assert (weights > 0).all()
    assert weights[2] / weights[1] == pytest.approx(np.log(1 + 90.5 / 10.5) / np.log(1 + 99.5 / 1.5), rel=1e-6)
    assert weights @ torch.tensor([0.0, 1, 10, 50, 100]) == pytest.approx(1 + 10 + 50 + 100)  # 1 on average
