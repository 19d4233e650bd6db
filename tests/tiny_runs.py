"""What tests of training share: random pairs of real words, a tiny base model in a folder, and short runs."""

import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from transformers import BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerBase

from splade_lit.data.datamodule import PairsDataModule
from splade_lit.training.module import SpladeModule

NEGATIVES = ("negative_1", "negative_2")


def save_base(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dropout: float = 0.0) -> Path:
    """Write a base model with this dropout everywhere and a decoder bias that keeps its vectors sparse."""
    if decoder := model.get_output_embeddings():
        decoder.bias.data.sub_(1.75)
    for name in ("dropout", "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(model.config, name):
            setattr(model.config, name, dropout)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_sentence_encoder(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write a random sentence encoder with a prompt for queries, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(3)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with tempfile.TemporaryDirectory() as body:
        BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(body)
        tokenizer.save_pretrained(body)
        modules = [Transformer(body), Pooling(16)]
    model = SentenceTransformer(modules=modules, prompts={"query": "what ", "document": ""}, device="cpu")
    model.max_seq_length = 24
    model.save(str(folder))
    return folder


def write_pairs(path: Path, tokenizer: PreTrainedTokenizerBase, num_pairs: int = 64, seed: int = 0) -> Path:
    """Write a jsonl file of pairs with two hard negatives; the document holds words of its query, some texts recur."""
    rng = random.Random(seed)
    words = sorted(token for token in tokenizer.get_vocab() if token.isalpha() and len(token) > 1)
    rows: list[dict[str, str]] = []
    for _ in range(num_pairs):
        query = rng.choices(words, k=rng.randint(3, 8))
        row = {"query": query, "answer": query[:2] + rng.choices(words, k=rng.randint(5, 40))}
        row |= {name: rng.choices(words, k=rng.randint(2, 30)) for name in NEGATIVES}
        rows.append({name: " ".join(text) for name, text in row.items()})
        if len(rows) % 5 == 0:
            rows[-1]["answer"] = rows[-3]["answer"]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def make_data(
    base: Path | PreTrainedTokenizerBase, pairs: Path, negatives: Sequence[str] = (), **settings: Any
) -> PairsDataModule:
    """A DataModule of such a file: batches of 8, no pairs held out."""
    settings = {"batch_size": 8, "num_eval_pairs": 0, "cache_dir": str(pairs.parent / "cache")} | settings
    tokenizer = str(base) if isinstance(base, str | Path) else base
    return PairsDataModule(tokenizer, str(pairs), negative_columns=negatives, **settings)


def make_trainer(folder: Path, max_steps: int, **settings: Any) -> L.Trainer:
    """A quiet trainer on the CPU that logs every step and keeps no checkpoints."""
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "gradient_clip_val": 1.0,
    }
    return L.Trainer(default_root_dir=str(folder), max_steps=max_steps, **(defaults | settings))


def named_weights(module: SpladeModule) -> dict[str, Any]:
    """Detached copies of all parameters under the names that transformers gives them, `idf_weights` among them."""
    with module.encoder.document.whole_model() as model:
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return weights | {"idf_weights": module.encoder.idf_weights.detach().clone()}
