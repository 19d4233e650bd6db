"""Re-ranking: the metrics of lists are scikit-learn's and sentence-transformers' own, and `evaluate --rerank`."""

import json
from dataclasses import replace

import numpy as np
import pytest
from command_runs import call, read_json
from hypothesis import given, settings
from hypothesis import strategies as st

from splade_lit import UserError, evaluate
from splade_lit.core.text import trec_run_text
from splade_lit.data.tasks import RetrievalTask, load_tasks
from splade_lit.evaluation.bm25 import best_bm25
from splade_lit.evaluation.metrics import rank_metrics
from splade_lit.evaluation.reranking import list_metrics, rerank, reranking_stages
from splade_lit.evaluation.task_evaluation import evaluate_task
from splade_lit.report.other_systems import read_results


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=30))
def test_ties_are_those_of_scikit_learn(documents):
    from sklearn.metrics import average_precision_score, ndcg_score

    relevant, scores = (np.array(column) for column in zip(*documents, strict=True))
    found = list_metrics(relevant.astype(bool), scores.astype(float))
    if not relevant.any():
        assert found == (0.0, 0.0, 0.0)
        return
    assert found.average_precision == pytest.approx(average_precision_score(relevant, scores))
    assert found.ndcg == pytest.approx(ndcg_score([relevant], [scores], k=10))


def test_of_equal_scores_the_first_in_the_list_counts():
    assert list_metrics(np.array([False, True]), np.array([1.0, 1.0])).reciprocal_rank == 0.5
    assert list_metrics(np.array([False] * 10 + [True]), np.zeros(11)).reciprocal_rank == 0.0


@pytest.fixture(scope="module")
def task(world) -> RetrievalTask:
    """A task with several relevant documents, whose queries have other words than those."""
    task = load_tasks([str(world.tasks)])[0]
    qrels = {query: {**grades, f"d{n + 7}": 1, f"d{n + 20}": 0} for n, (query, grades) in enumerate(task.qrels.items())}
    return replace(task, qrels=qrels)


class Predicts:
    """A sparse encoder of sentence-transformers with the one method that its evaluator of cross-encoders calls."""

    def __init__(self, model):
        self.model = model
        self.model_card_data = model.model_card_data

    def predict(self, pairs, **_):
        queries, documents = (list(texts) for texts in zip(*pairs, strict=True))
        products = self.model.encode_query(queries).to_dense() * self.model.encode_document(documents).to_dense()
        return products.sum(1).numpy()


@pytest.fixture(scope="module")
def peer(tiny_tokenizer, tmp_path_factory):
    """The encoder of these tests, and the same files in sentence-transformers."""
    import torch
    from conftest import tiny_masked_lm
    from sentence_transformers import SparseEncoder

    from splade_lit import AsymmetricSparseEncoder
    from splade_lit.encoder.document import MlmDocumentEncoder
    from splade_lit.encoder.query import IdfQueryEncoder

    document = MlmDocumentEncoder(tiny_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer.pad_token_id)
    idf = torch.rand(len(tiny_tokenizer), generator=torch.Generator().manual_seed(0)) * 3
    folder = tmp_path_factory.mktemp("model")
    AsymmetricSparseEncoder(IdfQueryEncoder(idf), document, tiny_tokenizer).eval().save(folder)
    return AsymmetricSparseEncoder.load(folder), SparseEncoder(str(folder), device="cpu"), folder


@pytest.mark.parametrize("top", [5, 12])
@pytest.mark.parametrize("always", [True, False])
def test_figures_are_those_of_sentence_transformers(peer, task, top, always):
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

    encoder, theirs, _ = peer
    run = best_bm25([task], encoder.tokenizer)[1][0].run
    run["q3"] = {"d1": 3.0, "d2": 2.0}  # no relevant document
    samples = [
        {
            "query": task.queries[query],
            "positive": [task.corpus[id] for id, grade in task.qrels[query].items() if grade > 0],
            "documents": [task.corpus[id] for id in sorted(hits, key=lambda id: (-hits[id], id))[:top]],
        }
        for query, hits in run.items()
    ]
    name = f"{task.name}_R{top}"
    evaluator = CrossEncoderRerankingEvaluator(samples, name=name, always_rerank_positives=always, write_csv=False)
    evaluator.store_metrics_in_model_card_data = lambda *_: None
    expected = evaluator(Predicts(theirs))
    stages = reranking_stages([rerank(encoder, task, run, top)], top)
    ours = stages["reranked_with_positives" if always else "reranked"]
    for metric in ("map", "mrr@10", "ndcg@10"):
        assert ours[f"{name}_{metric}"] == pytest.approx(expected[f"{name}_{metric}"], abs=1e-6)
        assert stages["candidates"][f"{name}_{metric}"] == pytest.approx(expected[f"{name}_base_{metric}"], abs=1e-6)
    assert 0 < stages["candidates"][f"{name}_map"] < 1


def test_figures_are_those_of_its_evaluator_of_sparse_models(peer, task):
    from sentence_transformers.sparse_encoder.evaluation import SparseRerankingEvaluator
    from sentence_transformers.util import dot_score

    encoder, theirs, _ = peer
    run = best_bm25([task], encoder.tokenizer)[1][0].run
    samples = []
    for query, hits in run.items():
        positives = [id for id, grade in task.qrels[query].items() if grade > 0]
        first = [id for id in sorted(hits, key=lambda id: (-hits[id], id))[:10] if id not in positives]
        texts = ([task.corpus[id] for id in ids] for ids in (positives, first))
        samples.append(dict(zip(("query", "positive", "negative"), (task.queries[query], *texts), strict=True)))
    expected = SparseRerankingEvaluator(samples, similarity_fct=dot_score, write_csv=False)(theirs)
    ours = reranking_stages([rerank(encoder, task, run, 10)], 10)["reranked_with_positives"]
    for metric in ("map", "mrr@10", "ndcg@10"):
        assert ours[f"{task.name}_R10_{metric}"] == pytest.approx(expected[metric], abs=1e-6)


def test_all_documents_as_candidates_rank_as_a_search_does(peer, task):
    encoder = peer[0]
    run = {query: dict.fromkeys(task.corpus, 1.0) for query in task.queries}
    result, expected = rerank(encoder, task, run, len(task.corpus)).result, evaluate_task(encoder, task)
    assert result.run.keys() == expected.run.keys()
    for query, hits in expected.run.items():
        assert list(result.run[query]) == list(hits)
        assert list(result.run[query].values()) == pytest.approx(list(hits.values()), rel=1e-5)
    assert result.metrics == pytest.approx(expected.metrics)


def test_what_is_missing_is_told(peer, task, caplog):
    encoder = peer[0]
    run = {"q0": {"d0": 2.0, "gone": 9.0, "d3": 1.0}, "q1": {"d2": 1.0}, "of no task": {"d1": 1.0}}
    done = rerank(encoder, task, run, 2)
    assert caplog.messages == [
        f"{task.name}: 1 candidates are not in the corpus and are left out.",
        f"{task.name}: 4 of 6 queries have no candidates and count 0.",
        f"{task.name}: 11 of 12 relevant documents are not among the first 2 candidates; no order of these finds them.",
    ]
    assert set(done.result.run["q0"]) == {"d0", "d3"}
    assert done.lists.reranked[2:].sum() == done.lists.with_positives[2:].sum() == 0
    assert done.lists.with_positives[1].min() > 0
    expected = rank_metrics({query: done.candidates.run[query] for query in task.queries}, task.qrels)
    assert done.candidates.metrics["ndcg@10"] == expected.means["ndcg@10"]
    with pytest.raises(UserError, match=r"no query has a candidate; give a ranking of this task.*'q0'.*'d0'"):
        rerank(encoder, task, {"x": {"y": 1.0}})


def test_a_querys_own_document_is_no_candidate(peer, task):
    own = replace(task, corpus=task.corpus | dict.fromkeys(task.queries, "song king"), leave_out_queries=True)
    run = {query: {query: 9.0, "d0": 2.0, "d1": 1.0} for query in task.queries}
    assert all(set(hits) == {"d0", "d1"} for hits in rerank(peer[0], own, run).result.run.values())


def test_the_command(peer, world, tmp_path):
    encoder, _, model = peer
    tasks = load_tasks([str(world.tasks)])
    found = best_bm25(tasks, encoder.tokenizer)[1]
    runs = [{query: {id: s for id, s in hits.items() if s} for query, hits in one.run.items()} for one in found]
    expected = reranking_stages([rerank(encoder, *pair, 7) for pair in zip(tasks, runs, strict=True)], 7)
    arguments = ["--model", model, "--tasks", world.tasks, "--rerank-top", 7, "--output", tmp_path / "metrics.json"]
    (tmp_path / "runs").mkdir()
    for task, run in zip(tasks, runs, strict=True):
        (tmp_path / "runs" / f"{task.name}.trec").write_text(trec_run_text(run))
    for first in ("bm25", tmp_path / "runs"):
        more = ["--per-query", tmp_path / "per_query.jsonl", "--runs", tmp_path / "reranked", "--rerank", first]
        outcome = call(evaluate.main, *arguments, *more)
        assert outcome.code == 0, outcome.err
        written = read_json(tmp_path / "metrics.json")
        assert written.keys() == expected.keys()
        for stage, figures in expected.items():
            assert written[stage] == pytest.approx(figures)
    for stage, figures in expected.items():
        row = [f"{figures[f'NanoBEIR_R7_mean_{metric}']:.4f}" for metric in ("map", "mrr@10", "ndcg@10")]
        assert any(line.split() == ["NanoBEIR_R7_mean", stage, *row] for line in outcome.out.splitlines())
    for path in (tmp_path, tmp_path / "metrics.json", tmp_path / "per_query.jsonl"):  # what compare takes
        system = read_results(path, "re-ranked", tasks)[0]
        assert system.figures["NanoNQ"]["ndcg@10"] == pytest.approx(expected["reranked"]["NanoNQ_dot_ndcg@10"])
    lines = (tmp_path / "per_query.jsonl").read_text().splitlines()
    assert {json.loads(line)["stage"] for line in lines} == {"candidates", "reranked"}
    assert {path.name for path in (tmp_path / "reranked").iterdir()} == {"NanoMSMARCO.trec", "NanoNQ.trec"}


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--rerank-top", "5"], "--rerank-top says how many candidates are re-ranked; give --rerank"),
        (["--rerank", "bm25", "--with", "bm25"], "two ways to use another ranking"),
        (["--rerank", "no such file"], "--rerank: there is no no such file"),
        (["--rerank", "bm25", "--rerank-top", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_reranked_is_told_before_anything_is_loaded(tmp_path, arguments, what):
    outcome = call(evaluate.main, "--model", tmp_path / "no model", *arguments)
    assert (outcome.code, what in outcome.errors[0]) == (2, True), outcome.err


def test_one_run_is_of_one_task_which_is_told_before_a_model_is_loaded(world, tmp_path):
    (tmp_path / "one.trec").write_text("q0 Q0 d0 1 2.0 me\n")
    (tmp_path / "folder").mkdir()
    for run, what in (
        (tmp_path / "one.trec", "is one run, but there are 2 tasks"),
        (tmp_path / "folder", "has no Nano"),
    ):
        outcome = call(evaluate.main, "--model", tmp_path / "none", "--tasks", world.tasks, "--rerank", run)
        assert (outcome.code, what in outcome.errors[0]) == (2, True), outcome.err
