"""The measures of the benchmark: what each side does, how often, and on what."""

import functools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from entry import Entry, compare
from materials import DATA, make_models, sampled_nanobeir, write_pairs, write_vectors
from processes import take_turns, time_processes

from splade_lit.data.tasks import load_tasks

MIB = 1 << 20

Entries = Iterator[tuple[str, Entry]]


@dataclass
class Scope:
    """Where to write, and whether to measure the short form."""

    folder: Path
    short: bool

    @functools.cached_property
    def models(self) -> dict[str, Path]:
        """Folders of saved models, made when they are first needed."""
        return make_models(self.folder)


def train(scope: Scope) -> Entries:
    """Training steps of 16 pairs: time, and peak memory; in the short form of one shape and length."""
    pairs = write_pairs(scope.folder, 1600)
    shapes = [("minilm", 256, 3)] if scope.short else [(name, cap, 15) for name in scope.models for cap in (256, 512)]
    for name, max_tokens, turns in shapes:
        base = str(scope.models[name] / "document_0_MLMTransformer")
        cache = str(scope.folder / f"train_{name}_{max_tokens}")
        settings = {"base": base, "pairs": str(pairs), "max_tokens": max_tokens, "cache": cache}
        answers = take_turns("train", ["ours", "peer", "floor"], turns, settings)
        yield from step_entries(f"{name}_{max_tokens}", answers)


def step_entries(name: str, answers: dict[str, list[dict[str, float]]]) -> Entries:
    """Time and memory of training steps, from what the sides answered."""
    seconds = {side: [answer["seconds"] for answer in each] for side, each in answers.items()}
    memory = {side: max(answer["bytes"] for answer in answers[side]) / MIB for side in ("ours", "peer")}
    yield f"train_step_{name}", compare("seconds", **seconds)
    yield f"train_memory_{name}", compare("MiB", [memory["ours"]], [memory["peer"]])


def train_gpu(scope: Scope) -> Entries:
    """Training on a GPU in 16-mixed at 512 tokens: time and memory of steps, and the largest batch in 24 GiB."""
    if not torch.cuda.is_available():
        print("train_gpu is left out: no CUDA device")
        return
    pairs, more_pairs = write_pairs(scope.folder, 2048), write_pairs(scope.folder, 8192)
    for name, base in scope.models.items():
        shared = {
            "base": str(base / "document_0_MLMTransformer"),
            "pairs": str(pairs),
            "max_tokens": 512,
            "cache": str(scope.folder / f"train_{name}_gpu"),
            "precision": "16-mixed",
        }
        for pairs_per_step in (16, 64):
            settings = shared | {"pairs_per_step": pairs_per_step}
            answers = take_turns("train", ["ours", "peer"], 7 if scope.short else 25, settings, gpu=True)
            yield from step_entries(f"{name}_512_gpu_{pairs_per_step}", answers)
        if not scope.short:
            sizes = take_turns(
                "largest_batch", ["ours", "peer"], 1, shared | {"pairs": str(more_pairs), "memory_gib": 24}, gpu=True
            )
            ours, peer = ([answer["pairs"] for answer in sizes[side]] for side in ("ours", "peer"))
            yield f"largest_batch_{name}_512_gpu", compare("pairs", ours, peer, more=True)


def encode(scope: Scope) -> Entries:
    """Documents and queries of NFCorpus, and queries of words that were never met before."""
    if not (DATA / "beir" / "nfcorpus").is_dir():
        print(f"encode_documents and encode_queries are left out: no beir/nfcorpus in {DATA}")
        return
    (task,) = load_tasks([str(DATA / "beir" / "nfcorpus")])
    documents, queries = list(task.corpus.values()), list(task.queries.values())
    random.Random(0).shuffle(documents)
    words = sorted({word for text in documents for word in text.split()})
    random.Random(0).shuffle(words)
    new_queries = [" ".join(words[i : i + 3]) for i in range(0, len(words) - 2, 3)]
    sides, chunk, turns = ["ours", "peer", "floor"], 16 if scope.short else 256, 3 if scope.short else 11
    yield "encode_documents", _encode("documents", documents, sides, chunk, turns, scope.models["minilm"], scope.folder)
    for name, texts in (("queries", queries), ("new_queries", new_queries)):
        turns = 7 if scope.short else 15
        yield f"encode_{name}", _encode("queries", texts, sides[:2], 1000, turns, scope.models["minilm"], scope.folder)


def _encode(task: str, texts: list[str], sides: list[str], chunk: int, turns: int, model: Path, folder: Path) -> Entry:
    path = folder / "texts.json"
    path.write_text(json.dumps(texts), encoding="utf-8")
    answers = take_turns(f"encode_{task}", sides, turns, {"model": str(model), "texts": str(path), "chunk": chunk})
    seconds = {side: [answer["seconds"] / chunk for answer in each] for side, each in answers.items()}
    return compare("seconds a text", **seconds)


def evaluate(scope: Scope) -> Entries:
    """The evaluation of the stand-ins for three NanoBEIR sets; in the short form of a few documents of each."""
    source = DATA / "nanobeir-standin"
    if not source.is_dir():
        print(f"evaluate is left out: no nanobeir-standin in {DATA}")
        return
    if scope.short:
        source = sampled_nanobeir(source, scope.folder / "nanobeir", 15)
    seconds = time_processes("evaluate", 1, {"model": str(scope.models["minilm"]), "folder": str(source)})
    yield "evaluate", compare("seconds", **seconds)


def search(scope: Scope) -> Entries:
    """Exact search of 20,000 documents of 150 active dims, in the short form 5,000, with 200 queries of 10."""
    write_vectors(scope.folder, num_documents=5_000 if scope.short else 20_000, num_queries=200)
    sides = ["ours", "peer", "splade_index", "seismic"]
    answers = take_turns("search", sides, 3 if scope.short else 15, {"vectors": str(scope.folder), "k": 100})
    seconds = {side: [answer["seconds"] / 200 for answer in each] for side, each in answers.items()}
    for side in sides[1:]:
        name = "search" if side == "peer" else f"search_{side}"
        yield name, compare("seconds a query", seconds["ours"], seconds[side])


def start_up(scope: Scope) -> Entries:
    """A fresh process: import, load, first document."""
    seconds = time_processes("start_up", 1 if scope.short else 5, {"model": str(scope.models["minilm"])})
    yield "start_up", compare("seconds", **seconds)


MEASURES: dict[str, Callable[[Scope], Entries]] = {
    measure.__name__: measure for measure in (train, train_gpu, encode, evaluate, search, start_up)
}
