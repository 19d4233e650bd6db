"""From pairs to an experiment: looks at the data, holds queries out, chooses settings, times them, writes the files."""

import itertools
import os
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from splade_lit.core.errors import UserError
from splade_lit.core.files import check_writable, replace_text
from splade_lit.core.progress import duration, quiet_package
from splade_lit.core.sources import first_available
from splade_lit.data.tasks import RetrievalTask
from splade_lit.encoder.masked_lm import load_tokenizer
from splade_lit.own_data.columns import make_task, read_corpus, read_pairs
from splade_lit.own_data.findings import corpus_lines, held_out_lines, pairs_lines, settings_line, warnings
from splade_lit.own_data.held_out import TASK_FILES, write_beir
from splade_lit.own_data.inspection import inspect_pairs
from splade_lit.own_data.settings import (
    Machine,
    Recipe,
    Source,
    base_candidates,
    choose_settings,
    evaluated_documents,
    task_documents,
    yaml_text,
)
from splade_lit.own_data.timing import MeasuredTimes, measure_times

_TIMED_PAIRS = 1_024
_TIMED_SECONDS = 60
_TIMED_DOCUMENTS = 64


def write_experiment(settings: Namespace) -> None:
    """Inspect the data, write the YAML file and the task, and print what was seen and how to go on.

    Args:
        settings: options of `python -m splade_lit.init`.

    Raises:
        UserError: the data cannot be used, the file exists already, or no base model can be had.
    """
    path, folder = _places(settings.name)
    _check_places(path, folder, settings.overwrite)
    machine = _machine()
    own = read_pairs(settings.pairs, settings.query_column, settings.document_column, settings.negative_columns)
    base_model = settings.base_model or first_available(base_candidates(machine.gpu))
    tokenizer = load_tokenizer(base_model)
    source = Source(settings.pairs, own.query_column, own.document_column, settings.negative_columns, str(folder))
    facts = inspect_pairs(own.pairs, own.num_rows, tokenizer)
    _say(pairs_lines(facts, source))
    corpus = read_corpus(settings.corpus, settings.text_column, own.pairs) if settings.corpus else None
    corpus_facts = corpus.facts if corpus else None
    _say(corpus_lines(corpus_facts, settings.corpus))
    most = settings.max_corpus_documents or task_documents(machine.gpu)
    held_out = make_task(folder.name, own.pairs, corpus, settings.queries, settings.qrels, settings.held_out, most)
    _say(held_out_lines(held_out, folder))
    recipe = choose_settings(
        facts,
        source,
        num_train=len(own.pairs) - held_out.num_left_out,
        num_corpus=len(held_out.task.corpus),
        base_model=base_model,
        max_model_tokens=_token_limit(tokenizer),
        machine=machine,
        run_folder=str(Path("runs") / path.stem),
    )
    english_base = settings.base_model is None
    _say([settings_line(recipe), *warnings(facts, corpus_facts, held_out, recipe, english_base)])
    times = None if settings.no_timing else _times(recipe, held_out.task)
    command = f"python -m splade_lit.fit --config {path}"
    header = [
        f"Question:  how well does a sparse retriever trained on {settings.pairs} answer queries it has not seen?",
        f"Command:   {command}",
        f"Hardware:  {machine.name}",
        f"Time:      {_expected(times, recipe, held_out.task)}",
        f"Expected:  {folder.name}_dot_ndcg@10 above that of BM25; metrics.json holds both",
        "Written by python -m splade_lit.init from what is in the data; every line may be changed.",
    ]
    write_beir(held_out.task, folder)
    replace_text(path, yaml_text(recipe, header))
    _say([f"time       {_expected(times, recipe, held_out.task)}", f"written    {path}, {folder}{os.sep}", command])


def _places(name: str) -> tuple[Path, Path]:
    """The YAML file and the folder of the task beside it."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = (Path("experiments") / name if len(path.parts) == 1 else path).with_name(f"{path.name}.yaml")
    return path, path.with_name(f"{path.stem}-heldout")


def _check_places(path: Path, folder: Path, overwrite: bool) -> None:
    check_writable(path, folder)
    there = [place for place in (path, *(folder / name for name in TASK_FILES)) if place.exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]} exists already; choose another name, or write it anew with --overwrite.")


def _times(recipe: Recipe, task: RetrievalTask) -> MeasuredTimes:
    """Train and encode a little with the settings that will be written."""
    model, data, trainer = (recipe.values(group) for group in ("model", "data", "trainer"))
    settings = {name: trainer[name] for name in ("accelerator", "devices", "precision", "gradient_clip_val")}
    limits = {name: model[name] for name in ("max_query_tokens", "max_document_tokens")}
    documents = list(itertools.islice(task.corpus.values(), _TIMED_DOCUMENTS))
    _say([f"timing     a few steps are trained to tell how long the run will take: {_TIMED_SECONDS} s at most"])
    with tempfile.TemporaryDirectory() as folder, quiet_package():
        write_beir(task, Path(folder))
        data |= {"max_pairs": _TIMED_PAIRS, "num_eval_pairs": 0, "held_out_tasks": [folder], **limits}
        times = measure_times(model, data, documents, settings, _TIMED_SECONDS)
    if times.threads_compete:
        shortest, longest = min(times.steps), max(times.steps)
        _say(
            [
                f"warning    other programs use the cores (load {times.load:.1f} a core, steps of {shortest:.2g} to "
                f"{longest:.2g} s); a run that has them for itself is faster."
            ]
        )
    return times


def _expected(times: MeasuredTimes | None, recipe: Recipe, task: RetrievalTask) -> str:
    """How long the run will take, in words."""
    if times is None:
        return "not measured"
    steps = recipe.values("trainer")["max_steps"]
    documents = evaluated_documents(recipe, len(task.corpus))
    seen = f"estimate from {len(times.steps)} step{'s' * (len(times.steps) > 1)}"
    return (
        f"about {duration(times.run_seconds(steps, documents))}: {steps:,} steps of {times.step:.2g} s, "
        f"{documents:,} documents encoded at {1 / times.document:,.0f} a second ({seen})"
    )


def _token_limit(tokenizer: PreTrainedTokenizerBase) -> int:
    return min(tokenizer.model_max_length, 512)  # tokenizers without a limit say 10^30


def _machine() -> Machine:
    if torch.cuda.is_available():
        return Machine(torch.cuda.get_device_name(), gpu=True)
    threads = torch.get_num_threads()
    return Machine(f"{threads} CPU core{'s' * (threads > 1)}", gpu=False)


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, flush=True)
