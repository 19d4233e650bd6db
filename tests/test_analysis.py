"""A model looked into on a task: counts, lexical and expansion weight, pruning, and why a query is won or lost."""

from pathlib import Path

import numpy as np
import pytest
from command_runs import write_nanobeir
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from splade_lit.analysis.active_dims import (
    active_dims_by_length,
    cheapest_point,
    overused,
    postings_per_query,
    pruning_curve,
    row_sizes,
    unanswered,
)
from splade_lit.analysis.encoded import EncodedTask, encode_task, lexical_part, split_mass
from splade_lit.analysis.explain import (
    CUT_OFF,
    DROPPED,
    EXPANSION,
    MISSING,
    NO_TERM,
    RIVAL_EXPANSION,
    RIVAL_WEIGHTS,
    WEIGHTS,
    hits,
    outcomes,
)
from splade_lit.analysis.subject import Subject, bm25_on
from splade_lit.core.tokenisation import tokenize_documents, tokenize_queries
from splade_lit.data.tasks import RetrievalTask, load_tasks
from splade_lit.evaluation.bm25 import best_bm25, bm25_result
from splade_lit.evaluation.sparsity import RetrievalSparsity, SparsityStatistics
from splade_lit.evaluation.task_evaluation import TokenisedTask, evaluate_task
from splade_lit.runs.run import Run


@pytest.fixture(scope="module")
def task(tmp_path_factory, tiny_tokenizer) -> RetrievalTask:
    folder = write_nanobeir(tmp_path_factory.mktemp("tasks"), tiny_tokenizer, ["NanoNQ"])
    return load_tasks([str(folder)])[0]


@pytest.fixture
def encoder(make_encoder):
    return make_encoder(max_document_tokens=20)


@pytest.fixture
def encoded(encoder, task) -> EncodedTask:
    return encode_task(encoder, task)


@pytest.fixture
def tokens(encoder) -> list[str]:
    return encoder.tokenizer.convert_ids_to_tokens(list(range(encoder.vocab_size)))


def test_vectors_are_those_of_the_model(encoder, encoded, task):
    expected = encoder.encode_document(list(task.corpus.values())).to_dense().numpy()
    np.testing.assert_allclose(encoded.documents.toarray(), expected, rtol=1e-5, atol=1e-6)
    assert encoded.evaluate().metrics == evaluate_task(encoder, task).metrics


def test_lexical_and_expansion_weight(encoder, encoded, task):
    split = split_mass(encoded.documents, encoded.presence)
    for row, text in enumerate(task.corpus.values()):
        weights = encoder.encode_document(text).to_dense().numpy()
        held = set(encoder.tokenizer(text, truncation=True, max_length=20)["input_ids"])
        active = set(np.flatnonzero(weights))
        assert split.lexical_mass[row] == pytest.approx(sum(weights[dim] for dim in active & held), rel=1e-4)
        assert split.expansion_mass[row] == pytest.approx(sum(weights[dim] for dim in active - held), rel=1e-4)
        assert split.lexical_dims[row] == len(active & held)
        assert split.expansion_dims[row] == len(active - held)
        assert split.text_terms[row] == len(held)
    assert split.expansion_mass.sum() > 0
    assert split.kept_share == split.lexical_dims.sum() / split.text_terms.sum()


def test_documents_without_weight_have_no_share():
    documents = csr_array(np.array([[0.0, 0.0], [1.0, 3.0]], dtype=np.float32))
    presence = csr_array(np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32))
    split = split_mass(documents, presence)
    assert split.lexical_mass_share.tolist() == [0.25]
    assert split.lexical_dims_share.tolist() == [0.5]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 50)), max_size=40), st.integers(1, 6))
def test_length_bins(documents, num_bins):
    lengths, sizes = (
        np.array(column, dtype=np.int64) for column in (zip(*documents, strict=True) if documents else ((), ()))
    )
    bins = active_dims_by_length(lengths, sizes, num_bins)
    assert len(bins) <= num_bins
    assert sum(one.num_documents for one in bins) == len(documents)
    for one in bins:
        rows = (lengths >= one.shortest) & (lengths <= one.longest)
        assert rows.sum() == one.num_documents
        assert one.median == np.median(sizes[rows])
        assert one.p90 == np.percentile(sizes[rows], 90)


def test_use_of_dims(encoded):
    documents, queries = encoded.documents.toarray() > 0, encoded.queries.toarray() > 0
    frequencies = documents.sum(axis=0)
    sparsity = encoded.sparsity
    assert set(unanswered(sparsity)) == set(np.flatnonzero(queries.any(axis=0) & ~documents.any(axis=0)))
    assert overused(sparsity.corpus, 0.5) == (frequencies > 15).sum()
    read = sum(frequencies[query].sum() for query in queries) / len(queries)
    assert postings_per_query(sparsity) == pytest.approx(read)


def test_nothing_active_is_unanswered():
    nothing, asked = (
        csr_array(np.array(rows, np.float32)) for rows in ([[0] * 5] * 4, [[0, 1, 1, 0, 0], [0, 0, 1, 0, 0]])
    )
    sparsity = RetrievalSparsity(SparsityStatistics.of(asked), SparsityStatistics.of(nothing))
    assert unanswered(sparsity).tolist() == [2, 1]
    assert (overused(sparsity.corpus), postings_per_query(sparsity)) == (0, 0.0)


def test_pruning_is_the_models_own_limit(encoder, encoded, task):
    largest = row_sizes(encoded.documents).max()
    points = pruning_curve(encoded, (3, 10, int(largest)))
    assert [point.max_active_dims for point in points] == [3, 10, None]
    for point in points:
        cut = encoder.encode_document_tokens(encoded.tokenised.documents, max_active_dims=point.max_active_dims)
        expected = EncodedTask(encoded.tokenised, encoded.queries, cut).evaluate().metrics
        assert point.ndcg == expected["ndcg@10"]
        assert point.active_dims == expected["corpus_active_dims"]
    best = cheapest_point(points)
    assert best.ndcg >= 0.99 * points[-1].ndcg
    assert all(point.ndcg < 0.99 * points[-1].ndcg for point in points[: points.index(best)])


def test_shares_add_up_to_the_score(encoder, encoded, tokens, task):
    scores = encoder.similarity(encoded.queries, encoded.documents).numpy()
    texts = list(task.corpus.values())
    for query, document in ((0, 0), (3, 7), (5, 29)):
        shares = encoded.explain(tokens, query, document)
        assert sum(term.share for term in shares) == pytest.approx(scores[query, document], rel=1e-5)
        made = encoder.intersection(encoded.queries[[query]], encoded.documents[[document]]).toarray()[0]
        assert {term.dim: term.share for term in shares if term.share} == pytest.approx(
            {int(dim): made[dim] for dim in np.flatnonzero(made)}, rel=1e-5
        )
        held = set(encoder.tokenizer(texts[document], truncation=True, max_length=20)["input_ids"])
        assert {term.dim for term in shares if term.in_text} == held & {term.dim for term in shares}


def test_hits_are_those_of_the_search(encoded, tokens):
    result = encoded.evaluate()
    found = hits(encoded, result, tokens, "q2", k=4)
    assert {hit.document_id: hit.score for hit in found} == dict(list(result.run["q2"].items())[:4])
    assert [hit.relevant for hit in found] == [hit.document_id == "d2" for hit in found]
    parts = [float(part.rpartition(" ")[2]) for part in found[0].terms.split(" + ")]
    assert sum(parts) == pytest.approx(found[0].score, abs=0.005 * len(parts))


def test_the_better_bm25(encoder, task):
    _, (best,) = best_bm25([task], encoder.tokenizer)
    assert bm25_on(Subject("alone", encoder), task).metrics == best.metrics
    for tokens, tokenizer in (("words", None), ("wordpieces", encoder.tokenizer)):
        run = Run(Path("run"), stages={"bm25": {f"bm25_{tokens}_ndcg@10": 1.0}})
        assert bm25_on(Subject("of a run", encoder, run), task).run == bm25_result(task, tokenizer).run


def small_task(tokenizer, relevant: str, rival: str, ours: list[list[float]], theirs: list[list[float]]):
    """One query, "river song", a relevant document and a rival: outcomes of our vectors against others.

    Documents are read up to 3 words; vectors are over river, song and king.
    """
    task = RetrievalTask("small", {"a": relevant, "b": rival}, {"q": "river song"}, {"q": {"a": 1}})
    dims = tokenizer.convert_tokens_to_ids(["river", "song", "king"])

    def vectors(weights: list[list[float]]) -> csr_array:
        dense = np.zeros((len(weights), len(tokenizer)), dtype=np.float32)
        dense[:, dims] = weights
        return csr_array(dense)

    queries = tokenize_queries(tokenizer, list(task.queries.values()), 64)
    documents = tokenize_documents(tokenizer, list(task.corpus.values()), 5)  # two special ones among them
    tokenised = TokenisedTask(task, ("q",), queries, documents)
    query = vectors([[2.0, 1.0, 0.0]])
    encoded, other = (EncodedTask(tokenised, query, vectors(weights)) for weights in (ours, theirs))
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return outcomes(encoded, encoded.evaluate(), other.evaluate(), tokens, tokenizer)


FIRST, SECOND = [[1.0, 0.0, 0.0], [0.5, 0.0, 0.0]], [[0.5, 0.0, 0.0], [1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("relevant", "rival", "ours", "theirs", "term", "cause"),
    [
        ("king", "river", FIRST, SECOND, "river", EXPANSION),
        ("river", "river", FIRST, SECOND, "river", WEIGHTS),
        # The largest share decides, not the largest weight.
        ("king song", "king", [[0.6, 1.0, 0.0], [0.0, 0.0, 0.0]], SECOND, "river", EXPANSION),
        ("king king king river", "river", [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], FIRST, "river", CUT_OFF),
        ("river king", "river", [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], FIRST, "river", DROPPED),
        ("king", "river", [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], FIRST, "river", MISSING),
        ("king", "king", [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], FIRST, "river", RIVAL_EXPANSION),
        ("river", "river", SECOND, FIRST, "river", RIVAL_WEIGHTS),
        # Equal scores are ranked by id, "b" before "a": no term decides.
        ("river", "river", [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], SECOND, None, NO_TERM),
    ],
)
def test_causes(tiny_tokenizer, relevant, rival, ours, theirs, term, cause):
    (outcome,) = small_task(tiny_tokenizer, relevant, rival, ours, theirs)
    assert (outcome.relevant, outcome.rival) == ("a", "b")
    assert (outcome.term, outcome.cause) == (term, cause)
    assert (outcome.gain > 0) == (cause in (EXPANSION, WEIGHTS) or term is None)


def test_equal_queries_are_left_out(tiny_tokenizer):
    assert small_task(tiny_tokenizer, "river", "river", FIRST, FIRST) == []


def test_outcomes_are_all_queries_that_differ(encoder, encoded, tokens, task):
    ours, bm25 = encoded.evaluate(), best_bm25([task], encoder.tokenizer)[1][0]
    found = outcomes(encoded, ours, bm25, tokens, encoder.tokenizer)
    pairs = zip(ours.rank_metrics.query_ids, ours.rank_metrics.per_query["ndcg@10"], strict=True)
    theirs = dict(zip(bm25.rank_metrics.query_ids, bm25.rank_metrics.per_query["ndcg@10"], strict=True))
    gains = {query_id: value - theirs[query_id] for query_id, value in pairs if value != theirs[query_id]}
    assert {outcome.query_id: outcome.gain for outcome in found} == pytest.approx(gains)
    assert [outcome.gain for outcome in found] == sorted(gains.values(), reverse=True)
    assert found


def test_lexical_part_alone_is_evaluated(encoded):
    lexical = lexical_part(encoded.documents, encoded.presence)
    assert row_sizes(lexical).tolist() == split_mass(encoded.documents, encoded.presence).lexical_dims.tolist()
    assert encoded.evaluate(lexical).metrics["corpus_active_dims"] < encoded.evaluate().metrics["corpus_active_dims"]
