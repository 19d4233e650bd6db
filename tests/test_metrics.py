"""Rank metrics: equal to sentence-transformers' and to trec_eval's, and right on cases that fit on paper."""

import math
import random

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from splade_lit.core.distributed import from_first, gather, merge, rank, share, world_size
from splade_lit.data.tasks import RetrievalTask
from splade_lit.evaluation.metrics import RetrievalMetrics, rank_metrics


def random_run(num_queries: int, num_documents: int, depth: int, ties: bool, seed: int = 0) -> dict:
    rng = random.Random(seed)
    ids = [str(i) for i in range(num_documents)]
    return {
        f"q{q}": {
            document: float(rng.randrange(5)) if ties else rng.random()
            for document in rng.sample(ids, rng.randint(0, depth))
        }
        for q in range(num_queries)
    }


def random_qrels(num_queries: int, num_documents: int, highest: int, seed: int = 1) -> dict:
    """Some queries without a relevant document, some judged documents outside the corpus, some with very many."""
    rng = random.Random(seed)
    ids = [str(i) for i in range(num_documents)] + [f"missing {i}" for i in range(20)]
    return {
        f"q{q}": {document: rng.randint(-1, highest) for document in rng.sample(ids, rng.choice([1, 2, 10, len(ids)]))}
        for q in range(num_queries)
    }


def peer_means(run: dict, qrels: dict) -> dict[str, float]:
    """Figures of sentence-transformers' evaluator for a run."""
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    relevant = {query: {document for document, grade in grades.items() if grade > 0} for query, grades in qrels.items()}
    evaluator = evaluation.InformationRetrievalEvaluator(dict.fromkeys(run, ""), {"": ""}, relevant)
    hits = [
        [{"corpus_id": document, "score": score} for document, score in run[query].items()]
        for query in evaluator.queries_ids
    ]
    scores = evaluator.compute_metrics(hits)
    return {name.replace("@k", f"@{k}"): value for name, values in scores.items() for k, value in values.items()}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("num_documents", "depth"), [(5, 5), (300, 150)])
def test_equal_to_sentence_transformers(ties: bool, num_documents: int, depth: int) -> None:
    run, qrels = random_run(60, num_documents, depth, ties), random_qrels(60, num_documents, highest=1)
    metrics = rank_metrics(run, qrels)
    peer = peer_means(run, qrels)
    assert 0 < len(metrics.query_ids) < 60
    assert metrics.means.keys() == peer.keys()
    assert metrics.means == pytest.approx(peer, abs=1e-12)
    assert max(metrics.means.values()) > 0.05


@pytest.mark.parametrize("graded", [False, True])
def test_equal_to_trec_eval(graded: bool) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    run, qrels = random_run(60, 90, 90, ties=False), random_qrels(60, 70, highest=3 if graded else 1)
    run = {query: documents or {"0": 1.0} for query, documents in run.items()}  # it leaves out queries without a hit
    metrics = rank_metrics(run, qrels, graded)
    names = {"map_cut_100": "map@100", "ndcg_cut_10": "ndcg@10"}
    names |= {f"success_{k}": f"accuracy@{k}" for k in (1, 5, 10)}
    names |= {
        f"{trec}_{k}": f"{ours}@{k}" for trec, ours in (("P", "precision"), ("recall", "recall")) for k in (1, 3, 5, 10)
    }
    cuts = "1,3,5,10"
    evaluator = pytrec_eval.RelevanceEvaluator(
        qrels, {"map_cut.100", "ndcg_cut.10", "success.1,5,10", f"P.{cuts}", f"recall.{cuts}", "recip_rank"}
    )
    trec = evaluator.evaluate(run)
    for row, query in enumerate(metrics.query_ids):
        ours = {name: values[row] for name, values in metrics.per_query.items()}
        assert {names[name]: trec[query][name] for name in names} == pytest.approx(
            {name: ours[name] for name in names.values()}, abs=1e-9
        )
        reciprocal_rank = trec[query]["recip_rank"]  # has no cut-off
        assert ours["mrr@10"] == pytest.approx(reciprocal_rank if reciprocal_rank >= 0.1 else 0.0, abs=1e-9)


def test_graded_gains_are_linear() -> None:
    metrics = rank_metrics({"q": {"a": 2.0, "b": 1.0}}, {"q": {"a": 1, "b": 3}}, graded=True)
    discount = 1 / math.log2(3)
    assert metrics.means["ndcg@10"] == pytest.approx((1 + 3 * discount) / (3 + discount), abs=1e-12)
    assert metrics.means["map@100"] == 1.0


def test_ties_are_ranked_by_id_as_a_string() -> None:
    run = {"q": {"8": 1.0, "10": 1.0, "9": 1.0}}
    for document, expected in (("10", 1.0), ("8", 1 / 2), ("9", 1 / 3)):
        assert rank_metrics(run, {"q": {document: 1}}).means["mrr@10"] == expected


def test_what_was_not_found_still_counts() -> None:
    means = rank_metrics({"q": {"a": 1.0}}, {"q": {"a": 1, "not found": 1, "not in the corpus": 1}}).means
    assert means["recall@10"] == pytest.approx(1 / 3)
    assert means["precision@10"] == pytest.approx(1 / 10)
    assert means["map@100"] == pytest.approx(1 / 3)
    assert means["ndcg@10"] == pytest.approx(1 / (1 + 1 / math.log2(3) + 1 / 2))


def test_more_relevant_documents_than_ranks() -> None:
    run = {"q": {f"{i:03}": -float(i) for i in range(150)}}
    means = rank_metrics(run, {"q": {f"{i:03}": 1 for i in range(150)}}).means
    assert means["map@100"] == 1.0
    assert means["ndcg@10"] == pytest.approx(1.0)
    assert means["recall@10"] == pytest.approx(10 / 150)


def test_which_queries_count() -> None:
    run = {"none relevant": {"a": 1.0}, "not judged": {"a": 1.0}, "nothing found": {}, "found": {"a": 1.0}}
    qrels = {"none relevant": {"a": 0}, "nothing found": {"a": 1}, "found": {"a": 1}, "not asked": {"a": 1}}
    metrics = rank_metrics(run, qrels)
    assert metrics.query_ids == ("nothing found", "found")
    np.testing.assert_array_equal(metrics.per_query["ndcg@10"], [0.0, 1.0])


IDS = sorted(str(i) for i in range(300))


def scored(num_queries: int, seed: int = 0) -> tuple[list[str], np.ndarray, dict]:
    """Queries, their scores of all documents, small whole numbers so that most are tied, and judgements."""
    queries = [f"q{q}" for q in range(num_queries)]
    scores = np.random.default_rng(seed).integers(0, 5, size=(num_queries, len(IDS))).astype(np.float32)
    return queries, scores, random_qrels(num_queries, len(IDS), highest=2)


def best(scores: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and numbers of the best 101 of these documents for each query."""
    order = np.lexsort((np.broadcast_to(documents, scores.shape), -scores))[:, :101]
    return np.take_along_axis(scores, order, axis=1), documents[order]


def whole(queries: list[str], scores: np.ndarray, qrels: dict) -> dict[str, float]:
    run = {query: dict(zip(IDS, row.tolist(), strict=True)) for query, row in zip(queries, scores, strict=True)}
    return rank_metrics(run, qrels, graded=True).means


def test_parts_of_a_corpus_add_up() -> None:
    queries, scores, qrels = scored(40)
    metrics = RetrievalMetrics(RetrievalTask("graded", {}, {}, qrels, graded=True), queries, IDS)
    for part in np.array_split(np.random.default_rng(1).permutation(len(IDS)), 7):
        metrics.update(*best(scores[:, part], part))
    assert metrics.compute() == pytest.approx(whole(queries, scores, qrels), abs=1e-12)
    assert all(len(hits) == 100 for hits in metrics.run.values())
    assert [list(hits.values()) for hits in metrics.run.values()] == np.sort(scores)[:, :-101:-1].tolist()


def test_a_model_that_matches_nothing_finds_nothing() -> None:
    """With all scores 0 the first ids would come first, which is no success; one match, and all is as in the peer."""
    qrels = {"dead": {"a": 1}, "alive": {"b": 1}}
    scores = np.zeros((2, 3), np.float32)
    metrics = RetrievalMetrics(RetrievalTask("small", {}, {}, qrels), ["dead", "alive"], ["a", "b", "c"])
    metrics.update(*best(scores, np.arange(3)))
    assert metrics.run == {"dead": {}, "alive": {}}
    assert set(metrics.compute().values()) == {0.0}
    scores[1, 2] = 1
    metrics.reset()
    metrics.update(*best(scores, np.arange(3)))
    assert metrics.run == {"dead": {"a": 0.0, "b": 0.0, "c": 0.0}, "alive": {"c": 1.0, "a": 0.0, "b": 0.0}}
    np.testing.assert_array_equal(metrics.rank_metrics.per_query["mrr@10"], [1, 1 / 3])


def test_a_query_is_left_out_of_its_own_ranking() -> None:
    numbers = np.arange(150)
    ids = [f"{number:03}" for number in numbers]
    queries = ["000", "001"]
    scores = np.tile(-numbers.astype(np.float32) - 1, (2, 1))
    own = {"000": "a query and a document"}
    task = RetrievalTask("small", own, own, {query: {"002": 1} for query in queries}, leave_out_queries=True)
    metrics = RetrievalMetrics(task, queries, ids)
    metrics.update(*best(scores, numbers))
    assert list(metrics.run["000"]) == ids[1:101]
    assert list(metrics.run["001"]) == ids[:100]
    np.testing.assert_array_equal(metrics.rank_metrics.per_query["mrr@10"], [1 / 2, 1 / 3])


def evaluate_share(number: int, address: str, results: "multiprocessing.SimpleQueue") -> None:
    distributed.init_process_group("gloo", init_method=address, rank=number, world_size=2)
    queries, scores, qrels = scored(41)
    metrics = RetrievalMetrics(RetrievalTask("graded", {}, {}, qrels, graded=True), queries, IDS)
    documents = np.arange(len(IDS))[share()]
    metrics.update(*best(scores[:, documents], documents))
    merge(metrics)
    first = from_first(lambda: (rank(), world_size(), gather("alone")))
    results.put((metrics.rank_metrics.means, gather(rank()), first))
    distributed.barrier()
    distributed.destroy_process_group()


def test_processes_add_up(tmp_path) -> None:
    results = multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(evaluate_share, args=(f"file://{tmp_path}/rendezvous", results), nprocs=2)
    expected = whole(*scored(41))
    for _ in range(2):
        means, ranks, first = results.get()
        assert means == pytest.approx(expected, abs=1e-12)
        assert ranks == [0, 1]
        assert first == (0, 1, ["alone"])
