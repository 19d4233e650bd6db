"""One side of tests/test_releases.py, run by a Python that has some release of sentence-transformers.

python release_side.py open MODEL TEXTS OUT [N]  vectors and settings of a saved model, cut to N active dims
python release_side.py save BASE MODEL TEXTS OUT the same of a model put together and saved here
python release_side.py measure MODEL TASK OUT    figures of a retrieval set whose vectors are given
"""

import json
import sys

import numpy as np
import sentence_transformers
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.evaluation import SparseInformationRetrievalEvaluator
from sentence_transformers.util import select_max_active_dims
from transformers import AutoTokenizer

# Release 5.0.0 does not write max_active_dims, and under it takes queries for documents.
HAS_LIMIT = sentence_transformers.__version__ != "5.0.0"


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write_vectors(model, texts, out, limit=None):
    """Vectors, and what a model was opened with."""
    table = next(part for part in model.modules() if type(part).__name__ == "SparseStaticEmbedding")
    settings = {
        "max_active_dims": model.max_active_dims,
        "prompts": {name: text or "" for name, text in model.prompts.items()},
        "frozen": not table.weight.requires_grad,
    }
    vectors = [encode(texts).to_dense().cpu() for encode in (model.encode_query, model.encode_document)]
    if limit is not None:
        vectors = [select_max_active_dims(side, limit) for side in vectors]
    queries, documents = (side.to_dense().numpy() for side in vectors)
    np.savez(out, queries=queries, documents=documents, settings=json.dumps(settings))


def put_together(base):
    """A model of this release's own modules: everything set that can be."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.model_max_length = 4
    try:
        from sentence_transformers.base.modules import Router, Transformer
        from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

        transformer = Transformer(base, transformer_task="fill-mask")
    except ImportError:
        from sentence_transformers.models import Router
        from sentence_transformers.sparse_encoder.models import MLMTransformer, SparseStaticEmbedding, SpladePooling

        transformer = MLMTransformer(base)
    transformer.max_seq_length = 9
    weights = torch.linspace(-0.2, 3.0, len(tokenizer))
    router = Router.for_query_document(
        [SparseStaticEmbedding(tokenizer, weights, frozen=True)],
        [transformer, SpladePooling("sum", activation_function="log1p_relu")],
    )
    prompts = {"query": "who is ", "document": "musical: "}
    return SparseEncoder(modules=[router], device="cpu", prompts=prompts, max_active_dims=11 if HAS_LIMIT else None)


def measure(model, task):
    """Figures of the evaluator of this release, which is given vectors in place of encoding texts."""
    vectors = {text: torch.tensor(vector) for text, vector in task["vectors"].items()}

    def look_up(texts, *args, **settings):
        return torch.stack([vectors[text] for text in texts]).to_sparse()

    model.encode = model.encode_query = model.encode_document = look_up
    evaluator = SparseInformationRetrievalEvaluator(
        task["queries"],
        task["corpus"],
        {query_id: set(documents) for query_id, documents in task["qrels"].items()},
        name="small",
        write_csv=False,
    )
    return {name: float(value) for name, value in evaluator(model).items()}


def main(action, *paths):
    if action == "open":
        model, texts, out, *limit = paths
        write_vectors(SparseEncoder(model, device="cpu"), read(texts), out, *map(int, limit))
    elif action == "save":
        base, folder, texts, out = paths
        model = put_together(base)
        model.save_pretrained(folder)
        write_vectors(model, read(texts), out)
    else:
        model, task, out = paths
        figures = measure(SparseEncoder(model, device="cpu"), read(task))
        with open(out, "w", encoding="utf-8") as file:
            json.dump(figures, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
