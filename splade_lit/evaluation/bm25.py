"""BM25, the reference point of every evaluation; search and metrics are the same code as for any sparse encoder."""

import logging
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from transformers import PreTrainedTokenizerBase

from splade_lit.core.bm25 import word_counts, word_weights
from splade_lit.data.tasks import RetrievalTask
from splade_lit.evaluation.results import TaskResult, evaluate_vectors, flat_metrics
from splade_lit.evaluation.task_evaluation import judged_query_ids

logger = logging.getLogger(__name__)


def bm25_result(
    task: RetrievalTask, tokenizer: PreTrainedTokenizerBase | None = None, k1: float = 1.2, b: float = 0.75
) -> TaskResult:
    """Evaluate BM25 on a task.

    Args:
        task: the task; documents count whole, not cut to a model's limit.
        tokenizer: score WordPieces (or what tokens it has), without special tokens; if not given, score words:
            lower-cased, of two letters or more, singular, without English stop words.
        k1: how slowly a repeated word saturates. 1.2 with b = 0.75 are Lucene's values; Anserini's 0.9 with 0.4 and
            bm25s' 1.5 with 0.75 gave less in most of ten runs (five retrieval sets, words and WordPieces).
        b: how much long documents are held back, 0 to 1.

    Raises:
        UserError: no query has a relevant document, or no document has a word.
    """
    query_ids = judged_query_ids(task)
    queries, documents = bm25_vectors(task, tokenizer, k1, b)
    return evaluate_vectors(task, query_ids, queries, list(task.corpus), documents)


def bm25_vectors(
    task: RetrievalTask, tokenizer: PreTrainedTokenizerBase | None = None, k1: float = 1.2, b: float = 0.75
) -> tuple[csr_array, csr_array]:
    """Counts of the words of the judged queries, and weights of those of the documents; see `bm25_result`."""
    weights, numbers = word_weights(task.name, list(task.corpus.values()), tokenizer, k1, b)
    queries = [task.queries[query_id] for query_id in judged_query_ids(task)]
    return word_counts(queries, numbers, tokenizer), weights


def best_bm25(
    tasks: Sequence[RetrievalTask], tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, float], list[TaskResult]]:
    """BM25 over words or over a tokenizer's WordPieces, whichever has the higher mean nDCG@10.

    Args:
        tasks: one task at least.
        tokenizer: the tokenizer of the model to compare with.

    Returns:
        Figures by full name as `evaluate_tasks` gives them and, to tell which of the two they are, those that they were
        chosen by: `bm25_words_ndcg@10` and `bm25_wordpieces_ndcg@10`, means over the tasks. Then the results that they
        are the means of, in the order of the tasks.
    """
    tokenizers = {"words": None, "wordpieces": tokenizer}
    results = {name: [bm25_result(task, one) for task in tasks] for name, one in tokenizers.items()}
    means = {name: float(np.mean([one.metrics["ndcg@10"] for one in each])) for name, each in results.items()}
    best = max(means, key=means.__getitem__)
    scores = ", ".join(f"{mean:.4f} over {tokens}" for tokens, mean in means.items())
    logger.info("BM25: mean nDCG@10 %s; the better one counts", scores)
    figures = flat_metrics(results[best], one_vocabulary=False)  # bm25s gives the words of each task its own numbers
    return figures | {f"bm25_{name}_ndcg@10": mean for name, mean in means.items()}, results[best]
