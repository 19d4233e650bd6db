"""From pairs to an experiment: looks at the data, holds queries out, chooses settings, times them, writes the files."""

import itertools
import logging
import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from splade_lit.core.errors import UserError
from splade_lit.core.files import check_writable, replace_text
from splade_lit.core.progress import duration
from splade_lit.core.sources import first_available
from splade_lit.data.tasks import RetrievalTask
from splade_lit.encoder.masked_lm import load_tokenizer
from splade_lit.own_data.columns import make_task, read_corpus, read_pairs
from splade_lit.own_data.findings import corpus_lines, held_out_lines, pairs_lines, settings_line, warnings
from splade_lit.own_data.held_out import TASK_FILES, write_beir
from splade_lit.own_data.inspection import inspect_pairs
from splade_lit.own_data.settings import Machine, base_candidates, evaluated_documents, experiment_yaml, task_documents
from splade_lit.own_data.timing import MeasuredTimes, measure_times

_TIMED_PAIRS = 1_024
_TIMED_SECONDS = 60
_TIMED_DOCUMENTS = 64

_say = partial(print, sep="\n", flush=True)


def write_experiment(options: Namespace) -> None:
    """Inspect the data, write the YAML file and the task, and print what was seen and how to go on.

    Args:
        options: those of `python -m splade_lit.init`.

    Raises:
        UserError: the data cannot be used, the file exists already, or no base model can be had.
    """
    path, folder = _places(options.name, options.overwrite)
    machine = _machine()
    own = read_pairs(options.pairs, options.query_column, options.document_column, options.negative_columns)
    base_model = options.base_model or first_available(base_candidates(machine.gpu))
    tokenizer = load_tokenizer(base_model)
    facts = inspect_pairs(own.pairs, own.num_rows, tokenizer)
    _say(*pairs_lines(facts, own))
    corpus = read_corpus(options.corpus, options.text_column, own.pairs) if options.corpus else None
    corpus_facts = corpus.facts if corpus else None
    _say(*corpus_lines(corpus_facts, options.corpus))
    most = options.max_corpus_documents or task_documents(machine.gpu)
    held_out = make_task(folder.name, own.pairs, corpus, options.queries, options.qrels, options.held_out, most)
    _say(*held_out_lines(held_out, folder))
    written = partial(
        experiment_yaml,
        path,
        folder,
        own,
        facts,
        num_train=len(own.pairs) - held_out.num_left_out,
        num_corpus=len(held_out.task.corpus),
        base_model=base_model,
        tokenizer=tokenizer,
        machine=machine,
    )
    time = "not measured"
    settings = yaml.safe_load(written(time=time))
    limit = settings["model"]["max_document_tokens"]
    _say(settings_line(settings), *warnings(facts, corpus_facts, held_out, limit, options.base_model is None))
    if not options.no_timing:
        time = _expected(_times(settings, held_out.task), settings, len(held_out.task.corpus))
    write_beir(held_out.task, folder)
    replace_text(path, written(time=time))
    _say(f"time       {time}", f"written    {path}, {folder}{os.sep}", f"python -m splade_lit.fit --config {path}")


def _places(name: str, overwrite: bool) -> tuple[Path, Path]:
    """The YAML file and the folder of the task beside it, which can be written."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = (Path("experiments") / name if len(path.parts) == 1 else path).with_name(f"{path.name}.yaml")
    folder = path.with_name(f"{path.stem}-heldout")
    check_writable(path, folder)
    there = [place for place in (path, *(folder / name for name in TASK_FILES)) if place.exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]} exists already; choose another name, or replace it with --overwrite.")
    return path, folder


def _times(settings: dict[str, Any], task: RetrievalTask) -> MeasuredTimes:
    """Train and encode a little with the settings that will be written."""
    model, trainer = settings["model"], settings["trainer"]
    limits = {name: model[name] for name in ("max_query_tokens", "max_document_tokens")}
    documents = list(itertools.islice(task.corpus.values(), _TIMED_DOCUMENTS))
    _say(f"timing     a few steps are trained to tell how long the run will take: {_TIMED_SECONDS} s at most")
    with tempfile.TemporaryDirectory() as folder, _only_progress():
        write_beir(task, Path(folder))
        changes = {"max_pairs": _TIMED_PAIRS, "num_eval_pairs": 0, "held_out_tasks": [folder]}
        machine = {name: trainer[name] for name in ("accelerator", "devices", "precision", "gradient_clip_val")}
        times = measure_times(model, settings["data"] | changes | limits, documents, machine, _TIMED_SECONDS)
    if times.threads_compete:
        _say(
            f"warning    other programs use the cores (load {times.load:.1f} a core, steps of {min(times.steps):.2g} "
            f"to {max(times.steps):.2g} s); a run that has them for itself is faster."
        )
    return times


@contextmanager
def _only_progress() -> Iterator[None]:
    """No lines of the log on model and pairs of the timing; its progress is shown."""
    logs = [logging.getLogger(name) for name in ("splade_lit.data", "splade_lit.encoder")]
    try:
        for log in logs:
            log.setLevel(logging.WARNING)
        yield
    finally:
        for log in logs:
            log.setLevel(logging.NOTSET)


def _expected(times: MeasuredTimes, settings: dict[str, Any], num_corpus: int) -> str:
    """How long the run will take, in words."""
    steps = settings["trainer"]["max_steps"]
    documents = evaluated_documents(settings, num_corpus)
    seen = f"estimate from {len(times.steps)} step{'s' * (len(times.steps) > 1)}"
    return (
        f"about {duration(times.run_seconds(steps, documents))}: {steps:,} steps of {times.step:.2g} s, "
        f"{documents:,} documents encoded at {1 / times.document:,.0f} a second ({seen})"
    )


def _machine() -> Machine:
    if torch.cuda.is_available():
        return Machine(torch.cuda.get_device_name(), gpu=True)
    threads = torch.get_num_threads()
    return Machine(f"{threads} CPU core{'s' * (threads > 1)}", gpu=False)
