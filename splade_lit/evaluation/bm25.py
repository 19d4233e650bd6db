"""BM25, the reference point of every evaluation.

bm25s weighs each word of each document in advance, so BM25 is a sparse encoder like any other here: documents are
vectors of weights, queries count words, and search and metrics are the same code.
"""

import logging
from collections.abc import Mapping, Sequence

import bm25s
import numpy as np
from scipy.sparse import csc_array, csr_array
from transformers import PreTrainedTokenizerBase

from splade_lit.core.errors import UserError
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


def word_weights(
    source: str,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    k1: float = 1.2,
    b: float = 0.75,
) -> tuple[csr_array, dict[str, int]]:
    """Weights of the words of documents, `[documents, words]`, and the number of each word; see `bm25_result`.

    A UserError, which names `source`, says that no document has a word.
    """
    documents = _tokens(list(texts), tokenizer)
    if not any(documents):
        raise UserError(f"{source}: BM25 finds no word in any document; give texts.")
    bm25 = bm25s.BM25(method="lucene", k1=k1, b=b)
    bm25.index(documents, create_empty_token=False, show_progress=False)
    # bm25s numbers the words in any order; sums over them are the same to the last digit only in one order.
    words = sorted(bm25.vocab_dict)
    weights = csc_array(
        (bm25.scores["data"], bm25.scores["indices"], bm25.scores["indptr"]),
        shape=(len(documents), len(words)),
    )[:, [bm25.vocab_dict[word] for word in words]]
    return weights.tocsr(), {word: number for number, word in enumerate(words)}


def word_counts(
    texts: Sequence[str], numbers: Mapping[str, int], tokenizer: PreTrainedTokenizerBase | None = None
) -> csr_array:
    """How often each word is in each query, `[queries, words]`, of those words that documents have."""
    queries = _tokens(list(texts), tokenizer)
    found = [(row, numbers[word]) for row, query in enumerate(queries) for word in query if word in numbers]
    rows, columns = np.array(found, dtype=np.int64).reshape(-1, 2).T
    ones = np.ones(len(found), np.float32)
    return csr_array((ones, (rows, columns)), shape=(len(queries), len(numbers)))


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


def singular(word: str) -> str:
    """The word without its plural ending: the S stemmer of Harman (1991), "How effective is suffixing?".

    Enough for most of what a stemmer brings: on NFCorpus nDCG@10 rises from 0.305 to 0.319 (published, with Porter's
    stemmer: 0.322).

    >>> [singular(word) for word in ("queries", "indexes", "vectors", "class", "status")]
    ['query', 'indexe', 'vector', 'class', 'status']
    """
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1]
    return word


def _tokens(texts: list[str], tokenizer: PreTrainedTokenizerBase | None) -> list[list[str]]:
    if tokenizer is None:
        settings = {"stopwords": "english", "return_ids": False, "show_progress": False}
        return list(bm25s.tokenize(texts, stemmer=lambda words: [singular(word) for word in words], **settings))
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [list(tokenizer.convert_ids_to_tokens(ids)) for ids in encoded]
