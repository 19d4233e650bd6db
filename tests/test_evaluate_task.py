"""Evaluation of tasks: the figures of sentence-transformers' sparse evaluators to 1e-9, ties and sparsity included."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.sparse import csr_array
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase

from splade_lit.core.errors import UserError
from splade_lit.core.tokenisation import Tokenisation
from splade_lit.data.tasks import RetrievalTask, load_task
from splade_lit.evaluation.bm25 import bm25_result
from splade_lit.evaluation.metrics import rank_metrics
from splade_lit.evaluation.results import evaluate_vectors, figure_names, flat_metrics
from splade_lit.evaluation.task_evaluation import (
    Encoder,
    TokenisedTask,
    evaluate_task,
    evaluate_tasks,
    sample_corpus,
    without_own_documents,
)
from splade_lit.runs.stages import stages_table

TASK = RetrievalTask(
    name="Rivers",
    corpus={"8": "river city", "10": "city river", "9": "the musical band", "7": "song of the year", "6": "city"},
    queries={"q1": "river", "q2": "musical song", "q3": "not judged"},
    qrels={"q1": {"8": 1}, "q2": {"9": 2, "7": 1, "lost": 1}},
    group="Test",
)


class WordOverlap:
    """An encoder without a model: presence of tokens on both sides, weighted by `weights`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, weights: np.ndarray | None = None) -> None:
        self.tokenisation = Tokenisation(tokenizer, max_query_tokens=16, max_document_tokens=16)
        self.weights = np.ones(len(tokenizer), np.float32) if weights is None else weights

    def encode_query_tokens(self, token_ids: Sequence[np.ndarray]) -> csr_array:
        dense = np.zeros((len(token_ids), len(self.weights)), np.float32)
        for row, ids in zip(dense, token_ids, strict=True):
            row[ids] = self.weights[ids]
        return csr_array(dense)

    def encode_document_tokens(
        self, token_ids: Sequence[np.ndarray], *, on_batch: Callable[[int], None] | None = None
    ) -> csr_array:
        return self.encode_query_tokens(token_ids)


@pytest.fixture
def encoder(tiny_tokenizer: PreTrainedTokenizerBase) -> WordOverlap:
    return WordOverlap(tiny_tokenizer)


def peer_model(tokenizer_dir: Path, tmp_path: Path, documents: str) -> Any:
    """A small asymmetric model of sentence-transformers.

    Its documents come from random masked-language logits, or are counted by presence like its queries, so that most
    scores are small whole numbers and tied.
    """
    peer = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    query = SparseStaticEmbedding(tokenizer)
    if documents == "presence":
        modules = [SparseStaticEmbedding(tokenizer)]
    else:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.5,
        )
        model = BertForMaskedLM(config)
        model.cls.predictions.bias.data.fill_(-5.0)  # some 20 active dims a document
        model.save_pretrained(tmp_path / "bert")
        tokenizer.save_pretrained(tmp_path / "bert")
        modules = [Transformer(str(tmp_path / "bert"), transformer_task="fill-mask"), SpladePooling("max")]
        query.weight.data = torch.linspace(-0.2, 3.0, len(tokenizer))  # negative weights as well
    return peer.SparseEncoder(modules=[Router.for_query_document([query], modules)], device="cpu")


def as_csr(embeddings: torch.Tensor) -> csr_array:
    embeddings = embeddings.coalesce()
    return csr_array((embeddings.values().numpy(), embeddings.indices().int().numpy()), shape=tuple(embeddings.shape))


def keep_vectors(evaluator: Any, vectors: dict[tuple[str, str], csr_array]) -> None:
    """Make an evaluator of sentence-transformers leave the vectors that it scores under its name and their side."""
    embed_inputs = evaluator.embed_inputs

    def embed_and_keep(model: Any, texts: list[str], encode_fn_name: str, **settings: Any) -> torch.Tensor:
        embeddings = embed_inputs(model, texts, encode_fn_name, **settings)
        vectors[evaluator.name, encode_fn_name] = as_csr(embeddings)
        return embeddings

    evaluator.embed_inputs = embed_and_keep


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("documents", ["presence", "logits"])
def test_equal_to_sentence_transformers(
    documents: str, shared_data: Path, tiny_tokenizer_dir: Path, tmp_path: Path
) -> None:
    model = peer_model(tiny_tokenizer_dir, tmp_path, documents)
    from sentence_transformers.sparse_encoder.evaluation import SparseNanoBEIREvaluator

    folder = str(shared_data / "nanobeir-standin")
    evaluator = SparseNanoBEIREvaluator(
        ["msmarco", "nfcorpus", "nq"], dataset_id=folder, write_csv=False, batch_size=256
    )
    vectors: dict[tuple[str, str], csr_array] = {}
    for one in evaluator.evaluators:
        if documents == "logits":  # no need to run the model on all 13,000
            one.corpus_ids, one.corpus = one.corpus_ids[:700], one.corpus[:700]
        keep_vectors(one, vectors)
    peer = evaluator(model)
    tasks = {task.name: task for task in load_task(folder)}
    results = [
        evaluate_vectors(
            tasks[one.name], one.queries_ids, vectors[one.name, "query"], one.corpus_ids, vectors[one.name, "document"]
        )
        for one in evaluator.evaluators
    ]
    ours = flat_metrics(results)
    assert ours.keys() == peer.keys()
    assert ours == pytest.approx(peer, abs=1e-9, rel=0)
    scores = [list(scores.values()) for result in results for scores in result.run.values()]
    assert sum(len(set(one)) < len(one) for one in scores) > (140 if documents == "presence" else 10)  # ties
    assert ours["NanoBEIR_mean_dot_ndcg@10"] > 0.001
    assert 5 < ours["NanoBEIR_mean_corpus_active_dims"] < 100


def test_figures_by_hand(encoder: WordOverlap) -> None:
    assert isinstance(encoder, Encoder)
    result = evaluate_task(encoder, TASK)
    assert list(result.run["q1"]) == ["10", "8", "6", "7", "9"]  # of equal scores the lower string first
    assert list(result.run["q1"].values()) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert result.rank_metrics.query_ids == ("q1", "q2")
    np.testing.assert_allclose(result.rank_metrics.per_query["mrr@10"], [1 / 2, 1])
    assert result.metrics["recall@10"] == pytest.approx((1 + 2 / 3) / 2)
    assert result.metrics["query_active_dims"] == 1.5
    assert result.metrics == {
        name.removeprefix("Rivers_").removeprefix("dot_"): value for name, value in result.named_metrics.items()
    }


def test_flat_names_and_group_means(encoder: WordOverlap) -> None:
    alone = RetrievalTask("Alone", TASK.corpus, TASK.queries, TASK.qrels)
    metrics = evaluate_tasks(encoder, [TASK, alone])
    assert {name.split("_")[0] for name in metrics} == {"Rivers", "Alone", "Test"}
    assert {"Rivers_dot_ndcg@10", "Test_mean_dot_map@100", "Test_mean_avg_flops"} <= metrics.keys()
    assert metrics["Test_mean_dot_ndcg@10"] == metrics["Rivers_dot_ndcg@10"]


def test_grades_count_only_where_the_task_is_graded(encoder: WordOverlap) -> None:
    graded = RetrievalTask(TASK.name, TASK.corpus, TASK.queries, TASK.qrels, graded=True)
    binary, by_grade = evaluate_task(encoder, TASK), evaluate_task(encoder, graded)
    assert binary.run == by_grade.run
    assert by_grade.rank_metrics.means == rank_metrics(by_grade.run, TASK.qrels, graded=True).means
    assert by_grade.metrics["ndcg@10"] != binary.metrics["ndcg@10"]
    assert by_grade.metrics["map@100"] == binary.metrics["map@100"]


def test_tokens_are_made_once(encoder: WordOverlap) -> None:
    tokenised = TokenisedTask.of(TASK, encoder)
    before = evaluate_task(encoder, tokenised)
    encoder.tokenisation = None  # type: ignore[assignment]
    assert evaluate_task(encoder, tokenised).metrics == before.metrics


def test_prompts_are_put_before(encoder: WordOverlap) -> None:
    encoder.tokenisation = replace(encoder.tokenisation, prompts={"query": "song ", "document": "river "})
    tokenised = TokenisedTask.of(TASK, encoder)
    song, river = encoder.tokenisation.tokenizer.convert_tokens_to_ids(["song", "river"])
    assert all(song in ids for ids in tokenised.queries)
    assert all(ids[1] == river for ids in tokenised.documents)


def test_sample_keeps_judged_documents() -> None:
    corpus = {str(i): "text" for i in range(100)}
    task = RetrievalTask("Numbers", corpus, {"q": "text"}, {"q": {"3": 1, "97": 0, "lost": 1}})
    sample = sample_corpus(task, 10, seed=1)
    assert len(sample.corpus) == 10
    assert {"3", "97"} <= sample.corpus.keys()
    assert list(sample.corpus) == sorted(sample.corpus, key=int)  # the corpus' order
    assert sample_corpus(task, 10, seed=1) == sample != sample_corpus(task, 10, seed=2)
    assert sample_corpus(task, 1).corpus.keys() == {"3", "97"}
    assert sample_corpus(task, 100) is task


def test_a_model_without_active_dims_finds_nothing(encoder: WordOverlap) -> None:
    """The order of the corpus is no success: every figure of the ranking is 0."""
    encoder.weights = np.zeros_like(encoder.weights)
    result = evaluate_task(encoder, TASK)
    assert set(result.rank_metrics.means.values()) == {0.0}
    assert result.run == {"q1": {}, "q2": {}}


def test_relevant_documents_that_share_no_term_are_warned_of(encoder: WordOverlap, caplog) -> None:
    """Kept, as sentence-transformers counts them: `7` comes second for `river`, though it has no such word."""
    task = replace(TASK, corpus={"8": "river", "7": "song"}, qrels={"q1": {"7": 1}, "q2": {"7": 1}})
    means = evaluate_task(encoder, task).rank_metrics.means
    assert means["mrr@10"] == (1 / 2 + 1) / 2
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("Rivers: for 1 of 2 queries a relevant document counts as found that shares no term")
    assert message.endswith(f"Without these nDCG@10 is 0.5000, not {means['ndcg@10']:.4f}.")
    caplog.clear()
    evaluate_task(encoder, TASK)
    assert not caplog.records


def write_arguments(folder: Path, same: bool) -> Path:
    """A BEIR folder whose queries have ids of documents, with the same text or another."""
    texts = {
        "a": "song river city",
        "b": "king band music",
        "c": "song river city of the",
        "d": "king band music of the",
    }
    queries = {id: texts[id] if same else "water blood" for id in ("a", "b")}
    for name, rows in (("corpus", texts), ("queries", queries)):
        lines = [json.dumps({"_id": id, "title": "", "text": text}) for id, text in rows.items()]
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na\tc\t1\nb\td\t1\n")
    return folder


def test_queries_that_are_documents_are_left_out_of_their_rankings(
    encoder: WordOverlap, tmp_path: Path, caplog
) -> None:
    """As BEIR does for ArguAna and Quora; each query would find itself first."""
    (task,) = load_task(str(write_arguments(tmp_path / "arguments", same=True)))
    for setting, mrr, said in ((None, 1.0, "left out of its own ranking"), (False, 0.5, "can find itself")):
        caplog.clear()
        (chosen,) = without_own_documents([task], setting)
        assert evaluate_task(encoder, chosen).metrics["mrr@10"] == mrr
        assert bm25_result(chosen).metrics["mrr@10"] == mrr
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [said in warning for warning in warnings] == [True]


def test_documents_that_only_have_a_querys_number_stay(tmp_path: Path) -> None:
    (task,) = load_task(str(write_arguments(tmp_path / "numbered", same=False)))
    assert task.left_out == frozenset()
    assert replace(task, leave_out_queries=True).left_out == {"a", "b"}
    relevant = replace(task, qrels={"a": {"a": 1}, "b": {"d": 1}}, leave_out_queries=True)
    assert relevant.left_out == {"b"}


def test_names_of_figures_are_known_before_they_are_measured(encoder: WordOverlap) -> None:
    alone = replace(TASK, name="Alone", group=None)
    assert figure_names([TASK, alone]) == evaluate_tasks(encoder, [TASK, alone]).keys()


def test_bad_input_is_told(encoder: WordOverlap) -> None:
    with pytest.raises(UserError, match="no query has a relevant document"):
        evaluate_task(encoder, RetrievalTask("Empty", TASK.corpus, TASK.queries, {"q1": {"8": 0}}))
    encoder.weights = np.full_like(encoder.weights, np.nan)
    with pytest.raises(UserError, match="not finite"):
        evaluate_task(encoder, TASK)


def test_table_shows_stages_of_each_task(encoder: WordOverlap) -> None:
    metrics = evaluate_tasks(encoder, [TASK])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(stages_table({"before": metrics, "after": metrics | {"Rivers_dot_ndcg@10": 0.98765}}))
    text = console.export_text()
    assert "0.9877" in text
    assert text.count("Rivers") == text.count("Test_mean") == 2
    assert "..." not in text
    assert "\u2026" not in text
