"""BM25: the formula by hand, the published figure on NFCorpus, and the better of two tokenisations."""

import math
import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from splade_lit.core.errors import UserError
from splade_lit.data.tasks import RetrievalTask, load_task
from splade_lit.evaluation.bm25 import best_bm25, bm25_result

CORPUS = {
    "d1": "The river runs through the city, the river is old.",
    "d2": "A city without rivers.",
    "d3": "Songs of a musical band.",
    "d4": "",
}


def task(queries: dict[str, str], qrels: dict[str, dict[str, int]], group: str | None = None) -> RetrievalTask:
    return RetrievalTask("Rivers", CORPUS, queries, qrels, group=group)


def test_scores_follow_the_formula() -> None:
    words = {
        "d1": ["river", "run", "through", "city", "river", "old"],
        "d2": ["city", "without", "river"],
        "d3": ["song", "musical", "band"],
        "d4": [],
    }
    k1, b, average = 1.2, 0.75, sum(map(len, words.values())) / 4

    def score(document: str, word: str) -> float:
        count = words[document].count(word)
        frequency = sum(word in one for one in words.values())
        idf = math.log(1 + (4 - frequency + 0.5) / (frequency + 0.5))
        return idf * count / (count + k1 * (1 - b + b * len(words[document]) / average))

    result = bm25_result(task({"q": "Rivers? The old river!"}, {"q": {"d1": 1}}), k1=k1, b=b)
    expected = {document: 2 * score(document, "river") + score(document, "old") for document in words}
    assert result.run["q"] == pytest.approx(expected, rel=1e-6)
    assert list(result.run["q"]) == ["d1", "d2", "d3", "d4"]  # of equal scores the lower id first


def test_wordpieces_find_what_words_miss(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """The query's word occurs in no document, a piece of it does."""
    rivers = task({"q": "rivering"}, {"q": {"d1": 1, "d2": 1}}, group="Test")
    words, pieces = bm25_result(rivers).metrics, bm25_result(rivers, tiny_tokenizer).metrics
    assert tiny_tokenizer.tokenize("rivering") == ["river", "##ing"]
    assert bm25_result(rivers).run["q"] == {}
    assert words["mrr@10"] == 0
    assert pieces["query_active_dims"] == 1.0
    best, _ = best_bm25([rivers], tiny_tokenizer)
    assert best["Rivers_dot_mrr@10"] == pieces["mrr@10"] == 1.0
    assert best["Test_mean_dot_ndcg@10"] == best["Rivers_dot_ndcg@10"]
    assert (best["bm25_words_ndcg@10"], best["bm25_wordpieces_ndcg@10"]) == (words["ndcg@10"], pieces["ndcg@10"])


def test_unknown_and_empty_queries_find_nothing(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    result = bm25_result(task({"empty": "", "stop words": "of the"}, {"empty": {"d1": 1}, "stop words": {"d1": 1}}))
    assert result.run == {"empty": {}, "stop words": {}}
    assert set(result.rank_metrics.means.values()) == {0.0}
    assert result.metrics["query_active_dims"] == 0


def test_bad_tasks_are_told() -> None:
    with pytest.raises(UserError, match="no query has a relevant document"):
        bm25_result(task({"q": "river"}, {"q": {"d1": 0}}))
    with pytest.raises(UserError, match="no word in any document"):
        bm25_result(RetrievalTask("Empty", {"d": "?"}, {"q": "river"}, {"q": {"d": 1}}))


def test_near_the_published_figure_on_nfcorpus(shared_data: Path) -> None:
    """Published with Porter's stemmer: 0.322 to 0.325 (BEIR, Anserini)."""
    (nfcorpus,) = load_task(str(shared_data / "beir" / "nfcorpus"))
    result = bm25_result(nfcorpus)
    assert len(result.rank_metrics.query_ids) == 323
    assert 0.315 < result.metrics["ndcg@10"] < 0.325
    lengths = [len(set(re.findall(r"\w\w+", text.lower()))) for text in nfcorpus.corpus.values()]
    assert result.metrics["corpus_active_dims"] < sum(lengths) / len(lengths)
