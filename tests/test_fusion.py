"""Rankings made into one: the maths by hand, and `evaluate --with`."""

from dataclasses import replace

import numpy as np
import pytest
from command_runs import call, read_json
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import save_sentence_encoder

from splade_lit import evaluate
from splade_lit.data.tasks import load_tasks
from splade_lit.evaluation.bm25 import bm25_result
from splade_lit.evaluation.fusion import dense_run, fuse, reciprocal_rank_fusion, weighted_sum
from splade_lit.evaluation.task_evaluation import evaluate_task

RUNS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.125, 9, width=16), min_size=1)


@given(RUNS, RUNS)
def test_rrf_is_its_formula(first, second):
    fused = reciprocal_rank_fusion([{"q": first}, {"q": second}])["q"]
    assert fused.keys() == first.keys() | second.keys()
    for id, score in fused.items():
        expected = 0.0
        for run in (first, second):
            if id in run:
                expected += 1 / (60 + 1 + sum((-run[other], other) < (-run[id], id) for other in run))
        assert score == pytest.approx(expected)
    assert list(fused) == sorted(fused, key=lambda id: (-fused[id], id))


@given(RUNS, RUNS)
def test_a_sum_of_one_alone_ranks_as_it_does(first, second):
    fused = weighted_sum([{"q": first}, {"q": second}], [1.0, 0.0])["q"]
    assert [id for id in fused if id in first and fused[id] > 0] == [
        id for id in sorted(first, key=lambda id: (-first[id], id)) if fused[id] > 0
    ]


def test_scores_of_0_are_no_hits():
    assert reciprocal_rank_fusion([{"q": {"a": 2.0, "b": 0.0}}]) == {"q": {"a": 1 / 61}}
    assert weighted_sum([{"q": {"a": 2.0, "b": 0.0}}], [1.0]) == {"q": {"a": 1.0}}


def test_evaluate_with_another_ranking(encoder, world, tiny_tokenizer, tmp_path):
    encoder.save(tmp_path / "model")
    dense = save_sentence_encoder(tmp_path / "dense", tiny_tokenizer)
    task = load_tasks([str(world.tasks)])[0]
    own = evaluate_task(encoder, task)
    for other, run in (("bm25", None), (dense, dense_run(task, str(dense)))):
        for fusion in ("rrf", "sum"):
            output = tmp_path / "metrics.json"
            arguments = ["--model", tmp_path / "model", "--tasks", world.tasks, "--with", other, "--fusion", fusion]
            weight = ["--weight", "0.3"] if fusion == "sum" else []
            outcome = call(evaluate.main, *arguments, *weight, "--output", output)
            assert outcome.code == 0, outcome.err
            stages = read_json(output)
            assert set(stages) == {"model", "fused"}
            name = f"{task.name}_dot_ndcg@10"
            assert stages["model"][name] == pytest.approx(own.metrics["ndcg@10"])
            if run is None:
                by_words = bm25_result(task), bm25_result(task, encoder.tokenizer)
                run = max(by_words, key=lambda one: one.metrics["ndcg@10"]).run
            expected = fuse(task, own, run, fusion, 0.3).metrics
            assert stages["fused"][name] == pytest.approx(expected["ndcg@10"])
            assert stages["fused"][f"{task.name}_corpus_active_dims"] == pytest.approx(expected["corpus_active_dims"])


def test_a_dense_ranking_is_sentence_transformers_own(world, tiny_tokenizer, tmp_path):
    from sentence_transformers import SentenceTransformer

    dense = save_sentence_encoder(tmp_path / "dense", tiny_tokenizer)
    task = load_tasks([str(world.tasks)])[0]
    model = SentenceTransformer(str(dense), device="cpu")
    queries, ids = list(task.queries), list(task.corpus)
    scores = model.similarity(
        model.encode_query([task.queries[id] for id in queries]), model.encode_document([task.corpus[id] for id in ids])
    ).numpy()
    run = dense_run(task, str(dense))
    for query, row in zip(queries, scores, strict=True):
        found = np.array([run[query][id] for id in ids if id in run[query]])
        np.testing.assert_allclose(
            found, [score for id, score in zip(ids, row, strict=True) if id in run[query]], atol=1e-5
        )


def test_a_weight_out_of_range_is_told(tmp_path):
    outcome = call(evaluate.main, "--model", tmp_path, "--with", "bm25", "--weight", "2")
    assert (outcome.code, "must be a number from 0 to 1, not 2" in outcome.errors[0]) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--fusion", "sum"], "--fusion say how rankings are made one; give --with"),
        (["--with", "bm25", "--weight", "0.4"], "--weight is that of a sum"),
        (["--with", "nowhere/at/all"], "is not a folder"),
    ],
)
def test_what_cannot_be_fused_is_told_before_anything_is_evaluated(tmp_path, arguments, what):
    outcome = call(evaluate.main, "--model", tmp_path / "no model", *arguments)
    assert (outcome.code, what in outcome.errors[0]) == (2, True), outcome.err


def test_a_querys_own_document_is_left_out_before_rankings_are_fused(encoder, world):
    task = load_tasks([str(world.tasks)])[0]
    own = replace(task, corpus=task.corpus | dict.fromkeys(task.queries, "song king"), leave_out_queries=True)
    plain = evaluate_task(encoder, task)
    with_own = {query: {query: 99.0, **hits} for query, hits in plain.run.items()}
    assert fuse(own, plain, with_own, "sum").run == fuse(task, plain, plain.run, "sum").run
