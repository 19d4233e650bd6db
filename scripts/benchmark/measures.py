"""The measures of the benchmark: what each side does, how often, on what, and the figures that come out."""

import functools
import json
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from materials import DATA, make_models, sampled_nanobeir, write_pairs, write_vectors
from processes import take_turns, time_processes

from splade_lit.data.tasks import load_tasks

Answers = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Entry:
    """One comparison.

    Attributes:
        unit: of the medians `ours`, `peer` and `floor`, the last that of the bare matrix products.
        ratio: median of peer over ours, turn by turn: how many times faster, or smaller; where more is better, larger.
        quartiles: of that ratio.
        over_floor: median of ours over the floor, turn by turn.
        turns: how many turns each side took.
    """

    unit: str
    ours: float
    peer: float
    ratio: float
    quartiles: tuple[float, float]
    floor: float | None
    over_floor: float | None
    turns: int


def compare(
    unit: str, ours: Sequence[float], peer: Sequence[float], floor: Sequence[float] | None = None, more: bool = False
) -> Entry:
    """The entry of what was measured in each turn; with `more`, more is better."""
    median = statistics.median
    ratios = [a / b if more else b / a for a, b in zip(ours, peer, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    over = median(a / f for a, f in zip(ours, floor, strict=True)) if floor else None
    floor_median = median(floor) if floor else None
    return Entry(unit, median(ours), median(peer), median(ratios), (low, high), floor_median, over, len(ratios))


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

    def recipe(self, model: str, max_tokens: int, num_pairs: int) -> dict[str, str | int]:
        """Settings of the task `train`."""
        return {
            "base": str(self.models[model] / "document_0_MLMTransformer"),
            "pairs": str(write_pairs(self.folder, num_pairs)),
            "max_tokens": max_tokens,
            "cache": str(self.folder / f"train_{model}_{max_tokens}"),
        }


def train(scope: Scope) -> Entries:
    """Training steps of 16 pairs: time, and peak memory; in the short form of one shape and length."""
    shapes = [("minilm", 256, 3)] if scope.short else [(name, cap, 15) for name in scope.models for cap in (256, 512)]
    for name, max_tokens, turns in shapes:
        answers = take_turns("train", ["ours", "peer", "floor"], turns, scope.recipe(name, max_tokens, 1600))
        yield from step_entries(f"{name}_{max_tokens}", answers)


def step_entries(name: str, answers: Answers) -> Entries:
    """Time and memory of training steps, from what the sides answered."""
    memory = {side: [max(answer["bytes"] for answer in answers[side]) / (1 << 20)] for side in ("ours", "peer")}
    yield f"train_step_{name}", compare("seconds", **_seconds(answers))
    yield f"train_memory_{name}", compare("MiB", **memory)


def train_gpu(scope: Scope) -> Entries:
    """Training on a GPU in 16-mixed at 512 tokens: time and memory of steps, and the largest batch in 24 GiB."""
    if not torch.cuda.is_available():
        print("train_gpu is left out: no CUDA device")
        return
    sides = ["ours", "peer"]
    for name in scope.models:
        for size in (16, 64):
            settings = scope.recipe(name, 512, 2048) | {"precision": "16-mixed", "pairs_per_step": size}
            answers = take_turns("train", sides, 7 if scope.short else 25, settings, gpu=True)
            yield from step_entries(f"{name}_512_gpu_{size}", answers)
        if not scope.short:
            settings = scope.recipe(name, 512, 8192) | {"precision": "16-mixed", "memory_gib": 24}
            answers = take_turns("largest_batch", sides, 1, settings, gpu=True)
            sizes = {side: [answer["pairs"] for answer in answers[side]] for side in sides}
            yield f"largest_batch_{name}_512_gpu", compare("pairs", **sizes, more=True)


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
    both, path = ["ours", "peer"], scope.folder / "texts.json"
    for name, kind, texts, sides, chunk, turns in (
        ("documents", "document", documents, [*both, "floor"], 16 if scope.short else 256, 3 if scope.short else 11),
        ("queries", "query", queries, both, 1000, 7 if scope.short else 15),
        ("new_queries", "query", new_queries, both, 1000, 7 if scope.short else 15),
    ):
        path.write_text(json.dumps(texts), encoding="utf-8")
        settings = {"kind": kind, "model": str(scope.models["minilm"]), "texts": str(path), "chunk": chunk}
        answers = take_turns("encode", sides, turns, settings)
        yield f"encode_{name}", compare("seconds a text", **_seconds(answers, chunk))


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
    ours, *others = _seconds(answers, 200).values()
    for name, seconds in zip(("search", "search_splade_index", "search_seismic"), others, strict=True):
        yield name, compare("seconds a query", ours, seconds)


def start_up(scope: Scope) -> Entries:
    """A fresh process: import, load, first document."""
    seconds = time_processes("start_up", 1 if scope.short else 5, {"model": str(scope.models["minilm"])})
    yield "start_up", compare("seconds", **seconds)


def _seconds(answers: Answers, number: int = 1) -> dict[str, list[float]]:
    """Seconds of each turn of each side, divided by how many texts or queries a turn has."""
    return {side: [answer["seconds"] / number for answer in each] for side, each in answers.items()}


MEASURES: dict[str, Callable[[Scope], Entries]] = {
    measure.__name__: measure for measure in (train, train_gpu, encode, evaluate, search, start_up)
}
