"""Evaluation from text to figures: equal to sentence-transformers' NanoBEIR evaluator and to trec_eval on real data.

The model computes without rounding, so that both libraries hold the same vectors to the last bit and a difference in a
figure is one of evaluation.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

from splade_lit import AsymmetricSparseEncoder
from splade_lit.data.tasks import load_task, load_tasks
from splade_lit.encoder.table import idf_from_json
from splade_lit.evaluation.metrics import Qrels, Run, rank_metrics
from splade_lit.evaluation.task_evaluation import evaluate_task, evaluate_tasks

HIDDEN = 32
NEIGHBOURS = 4  # signs in which the code of another token may differ for it to be active too
LARGE = 2.0**17
CUTS = (1, 3, 5, 10)


def save_exact_model(folder: Path, vocab: Path) -> Path:
    """Write a BERT whose logits are exact, whatever the order of additions.

    A token's embedding is a code of as many 1 as -1. Attention and feed-forward layers run, but add 0, and layer norms
    leave the code as it is but for rounding, which the last one drops by adding `LARGE`: that cancels in the product
    with a code. Logits are whole numbers and a half, positive for the token itself and those with a code like its own.
    """
    tokenizer = BertTokenizerFast(vocab=str(vocab), do_lower_case=True, model_max_length=512)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=HIDDEN,
        hidden_act="relu",
    )
    torch.manual_seed(0)
    model = BertForMaskedLM(config).eval()
    generator = np.random.default_rng(0)
    codes = np.repeat([[1.0, -1.0]], HIDDEN // 2, axis=0).reshape(1, -1).repeat(len(tokenizer), axis=0)
    with torch.no_grad():
        embeddings = model.bert.embeddings
        embeddings.word_embeddings.weight.copy_(torch.from_numpy(generator.permuted(codes, axis=1)))
        for silent in (embeddings.position_embeddings, embeddings.token_type_embeddings):
            silent.weight.zero_()
        for layer in model.bert.encoder.layer:
            for silent in (layer.attention.output.dense, layer.output.dense):
                silent.weight.zero_()
        head = model.cls.predictions.transform
        torch.nn.init.eye_(head.dense.weight)
        head.LayerNorm.bias.fill_(LARGE)
        model.get_output_embeddings().bias.fill_(2 * NEIGHBOURS + 0.5 - HIDDEN)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exact_model(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> AsymmetricSparseEncoder:
    folder = save_exact_model(tmp_path_factory.mktemp("exact"), shared_data / "bert-uncased" / "vocab.txt")
    return AsymmetricSparseEncoder.from_base(str(folder), max_query_tokens=32, max_document_tokens=16).eval()


@pytest.fixture
def encoder(exact_model: AsymmetricSparseEncoder, shared_data: Path, request) -> AsymmetricSparseEncoder:
    """The model with query weights all one, so that most scores are tied, or of an idf.json, some negative or 0."""
    weights = torch.ones(exact_model.vocab_size)
    if request.param == "idf.json":
        path = shared_data / "bert-uncased" / "idf.json"
        weights = torch.from_numpy(idf_from_json(path, exact_model.tokenizer.get_vocab(), exact_model.vocab_size))
        frequent = exact_model.tokenizer.convert_tokens_to_ids(["the", "of", "is", "what", "in"])
        weights[frequent] = torch.tensor([-0.5, 0.0, -1e-3, 0.0, 0.25])
    exact_model.idf_weights.data.copy_(weights)
    return exact_model


def thin_out(source: Path, folder: Path, every: int) -> Path:
    """Copy a data set in NanoBEIR's layout with one in so many documents; judgements of the others stay."""
    shutil.copytree(source, folder)
    for path in (folder / "corpus").iterdir():
        corpus = pq.read_table(path)
        pq.write_table(corpus.take(list(range(0, len(corpus), every))), path)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("encoder", ["ones", "idf.json"], indirect=True)
def test_figures_equal_the_peers(encoder, shared_data, tmp_path, every):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.evaluation import SparseNanoBEIREvaluator

    # A name of its own: `datasets` tells the caches of folders apart by their names alone.
    folder = str(thin_out(shared_data / "nanobeir-standin", tmp_path / f"standin_{every}", every))
    encoder.save(tmp_path / "model")
    names = ["msmarco", "nfcorpus", "nq"]
    evaluator = SparseNanoBEIREvaluator(names, dataset_id=folder, batch_size=16, write_csv=False)
    expected = evaluator(SparseEncoder(str(tmp_path / "model"), device="cpu"))
    tasks = load_tasks(names, nanobeir_source=folder)
    assert sum(len(task.corpus) for task in tasks) == pytest.approx(13_031 / every, abs=3)
    ours = evaluate_tasks(encoder, tasks)
    assert ours.keys() == expected.keys()
    assert len(ours) == (len(tasks) + 1) * 20
    assert ours == pytest.approx(expected, abs=1e-9, rel=0)
    assert evaluator.primary_metric == "NanoBEIR_mean_dot_ndcg@10"
    assert all(ours[f"{task.name}_dot_ndcg@10"] > 0.05 for task in tasks)
    assert 15 < ours["NanoBEIR_mean_corpus_active_dims"] < 40


def trec_figures(run: Run, qrels: Qrels) -> dict[str, dict[str, float]]:
    """trec_eval's figures of each query under our names, on a run in the order given."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    names = {f"{trec}_{k}": f"{ours}@{k}" for trec, ours in (("P", "precision"), ("recall", "recall")) for k in CUTS}
    names |= {f"success_{k}": f"accuracy@{k}" for k in (1, 5, 10)}
    names |= {"ndcg_cut_10": "ndcg@10", "map_cut_100": "map@100"}
    cuts = ",".join(map(str, CUTS))
    measures = {f"P.{cuts}", f"recall.{cuts}", "success.1,5,10", "ndcg_cut.10", "map_cut.100"}
    # trec_eval has an order of its own for ties: ranks in place of scores tell it ours.
    ranked = {query: {document: -float(rank) for rank, document in enumerate(hits)} for query, hits in run.items()}
    figures = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(ranked)
    return {query: {names[name]: value for name, value in values.items()} for query, values in figures.items()}


@pytest.mark.parametrize("encoder", ["idf.json"], indirect=True)
def test_figures_equal_trec_eval(encoder, shared_data):
    (task,) = load_task(str(shared_data / "beir" / "nfcorpus"))
    result = evaluate_task(encoder, task)
    assert {grade for grades in task.qrels.values() for grade in grades.values()} == {1, 2}
    for graded in (True, False):
        metrics = rank_metrics(result.run, task.qrels, graded)
        qrels = {q: {d: grade if graded else 1 for d, grade in task.qrels[q].items()} for q in metrics.query_ids}
        expected = trec_figures(result.run, qrels)
        assert len(expected) == len(metrics.query_ids) > 300
        for row, query in enumerate(metrics.query_ids):
            # trec_eval divides by all relevant documents, though no more than 100 can be found.
            expected[query]["map@100"] *= max(len(qrels[query]) / 100, 1)
            ours = {name: values[row] for name, values in metrics.per_query.items() if name in expected[query]}
            assert ours == pytest.approx(expected[query], abs=1e-9)
    assert max(map(len, qrels.values())) > 100
    assert result.rank_metrics.means["ndcg@10"] != metrics.means["ndcg@10"] > 0.1


@pytest.mark.parametrize("encoder", ["ones"], indirect=True)
def test_tied_documents_come_in_the_order_of_their_ids(encoder, shared_data):
    (task,) = load_task("nq", nanobeir_source=str(shared_data / "nanobeir-standin"))
    sample = dict(list(task.corpus.items())[:500])
    run = evaluate_task(encoder, replace(task, corpus=sample)).run
    rankings = [[(-score, document) for document, score in hits.items()] for hits in run.values()]
    assert all(ranking == sorted(ranking) for ranking in rankings)
    assert sum(len({score for score, _ in ranking}) < len(ranking) for ranking in rankings) == len(rankings)
