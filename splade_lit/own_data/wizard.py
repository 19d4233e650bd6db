"""From pairs, or a corpus alone, to an experiment.

Looks at the data, holds queries out, chooses settings, times them, and writes the files.
"""

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

from splade_lit.command_line.devices import precision_on_cpu
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_not_read, check_writable, replace_text
from splade_lit.core.progress import duration
from splade_lit.core.sources import first_available
from splade_lit.data.collection_pairs import open_pairs
from splade_lit.data.tasks import RetrievalTask
from splade_lit.data.text_keys import without_queries
from splade_lit.encoder.masked_lm import load_tokenizer
from splade_lit.own_data.columns import OwnPairs, make_task, read_corpus, read_pairs
from splade_lit.own_data.corpus_alone import (
    MadePairs,
    pairs_of_corpus,
    read_titled,
    titled_pairs,
    with_made_pairs,
    write_pairs,
)
from splade_lit.own_data.findings import (
    added_lines,
    corpus_lines,
    held_out_lines,
    made_lines,
    made_test_lines,
    made_warnings,
    no_teacher_lines,
    none_added_lines,
    pairs_lines,
    settings_line,
    target_lines,
    title_lines,
    warnings,
)
from splade_lit.own_data.held_out import TASK_FILES, write_beir
from splade_lit.own_data.inspection import inspect_pairs
from splade_lit.own_data.settings import (
    FEW_PAIRS,
    SMALL_RUN_PAIRS,
    Machine,
    base_candidates,
    evaluated_documents,
    experiment_yaml,
    task_documents,
    taught_texts,
    teachers_for,
)
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
    _check_belongings(options)
    path, folder, pairs_file = _places(options.name, options.overwrite)
    machine = _machine()
    most = options.max_corpus_documents or task_documents(machine.gpu)
    base_model = options.base_model or first_available(base_candidates(machine.gpu))
    tokenizer = load_tokenizer(base_model)
    made = None if options.pairs else _make_pairs(options, pairs_file, folder.name, most)
    if made is None:
        own = read_pairs(
            options.pairs,
            options.query_column,
            options.document_column,
            options.negative_columns,
            options.positive_columns,
            options.pairs_config,
        )
        check_not_read(pairs_file, open_pairs(options.pairs, options.pairs_config).files)
    else:
        own = made.own
        _say(*made_lines(made.facts, options.corpus))
    facts = inspect_pairs(own.pairs, own.num_rows, tokenizer)
    _say(*pairs_lines(facts, own))
    corpus = None
    if made is None or made.held_out is None:
        corpus = read_corpus(options.corpus, options.text_column, own.pairs) if options.corpus else None
        if made is None:
            _say(*corpus_lines(corpus.facts if corpus else None, options.corpus))
        held_out = make_task(folder.name, own.pairs, corpus, options.queries, options.qrels, options.held_out, most)
    else:
        held_out = made.held_out
    _say(*held_out_lines(held_out, folder), *(made_test_lines(made.facts) if made else []))
    few = made is None and len(own.pairs) < FEW_PAIRS
    small = few and not (own.negative_columns or own.positive_columns)
    teachers = teachers_for(facts) if made or few else []
    added = _added_pairs(options, own, pairs_file) if small and teachers else None
    to_write = made or added
    trained = to_write.own if to_write else own
    num_train = len(without_queries(trained.pairs, held_out.task.queries.values()))
    if added:
        num_left_out = len(trained.pairs) - num_train - held_out.num_left_out
        _say(*added_lines(added.facts, num_left_out))
    if few and teachers and not small:
        _say(*none_added_lines())
    if not teachers and (made or few):
        _say(*no_teacher_lines())
    written = partial(
        experiment_yaml,
        path,
        folder,
        trained,
        facts,
        num_train=num_train,
        num_corpus=len(held_out.task.corpus),
        base_model=base_model,
        tokenizer=tokenizer,
        machine=machine,
        target_active_dims=options.target_active_dims,
        teachers=teachers,
        small=bool(small and teachers),
    )
    time = "not measured"
    settings = yaml.safe_load(written(time=time))
    limit = settings["model"]["max_document_tokens"]
    corpus_facts = corpus.facts if corpus and not made else None  # parts of documents are not looked up
    found = warnings(facts, corpus_facts, held_out, limit, options.base_model is None)
    found += target_lines(settings, options.target_active_dims, len(tokenizer))
    unread = title_lines(options.title_column) if to_write else []
    _say(settings_line(settings), *found, *(made_warnings(made.facts) if made else []), *unread)
    if to_write is not None:
        write_pairs(to_write, pairs_file)
    if not options.no_timing:
        time = _expected(_times(settings, held_out.task), settings, len(held_out.task.corpus), len(trained.pairs))
    write_beir(held_out.task, folder)
    replace_text(path, written(time=time))
    files = [str(path), *([str(pairs_file)] if to_write else []), f"{folder}{os.sep}"]
    _say(f"time       {time}", f"written    {', '.join(files)}", f"python -m splade_lit.fit --config {path}")


def _check_belongings(options: Namespace) -> None:
    """Options that are about pairs, or about none, with what they are about."""
    if options.pairs is None and options.corpus is None:
        raise UserError("Give pairs with --pairs, or a corpus with --corpus, of whose documents pairs are then made.")
    belongings = ("pairs_config", "query_column", "document_column", "positive_columns", "negative_columns")
    if options.pairs is None and any(getattr(options, name) for name in belongings):
        raise UserError("--pairs-config, --query-column and the like are about pairs; give them with --pairs.")
    if options.corpus is None and options.title_column:
        raise UserError("--title-column is about a corpus, of which pairs are made; give it with --corpus.")


def _make_pairs(options: Namespace, path: Path, name: str, max_documents: int) -> MadePairs:
    """Pairs of a corpus alone, with test queries unless some are given."""
    corpus = read_titled(options.corpus, options.text_column, options.title_column)
    test_queries = options.queries is None and options.qrels is None
    return pairs_of_corpus(corpus, path, name, test_queries, options.held_out, max_documents)


def _added_pairs(options: Namespace, own: OwnPairs, path: Path) -> MadePairs | None:
    """Few pairs with others made of the documents that are searched."""
    corpus = (
        read_titled(options.corpus, options.text_column, options.title_column)
        if options.corpus
        else titled_pairs(own.pairs)
    )
    return with_made_pairs(own, corpus, path, SMALL_RUN_PAIRS)


def _places(name: str, overwrite: bool) -> tuple[Path, Path, Path]:
    """The YAML file, the folder of the task beside it, and the file for pairs that are made; all can be written."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = (Path("experiments") / name if len(path.parts) == 1 else path).with_name(f"{path.name}.yaml")
    folder = path.with_name(f"{path.stem}-heldout")
    pairs = path.with_name(f"{path.stem}-pairs.jsonl")
    check_writable(path, folder)
    places = [path, *(folder / name for name in TASK_FILES), pairs]
    there = [place for place in places if place.exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]} exists already; choose another name, or replace it with --overwrite.")
    return path, folder, pairs


def _times(settings: dict[str, Any], task: RetrievalTask) -> MeasuredTimes:
    """Train and encode a little with the settings that will be written."""
    model, trainer = settings["model"], settings["trainer"]
    limits = {name: model[name] for name in ("max_query_tokens", "max_document_tokens")}
    documents = list(itertools.islice(task.corpus.values(), _TIMED_DOCUMENTS))
    _say(f"timing     a few steps are trained to tell how long the run will take: {_TIMED_SECONDS} s at most")
    with tempfile.TemporaryDirectory() as folder, _only_progress():
        write_beir(task, Path(folder))
        # A teacher's vectors would take longer than all that is timed.
        changes = {"max_pairs": _TIMED_PAIRS, "num_eval_pairs": 0, "held_out_tasks": [folder], "teacher": None}
        model = {name: value for name, value in model.items() if name != "ranking"}
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


def _expected(times: MeasuredTimes, settings: dict[str, Any], num_corpus: int, num_pairs: int) -> str:
    """How long the run will take, in words."""
    steps = settings["trainer"]["max_steps"]
    documents = evaluated_documents(settings, num_corpus) + taught_texts(settings, num_pairs)
    seen = f"estimate from {len(times.steps)} step{'s' * (len(times.steps) > 1)}"
    return (
        f"about {duration(times.run_seconds(steps, documents))}: {steps:,} steps of {times.step:.2g} s, "
        f"{documents:,} documents encoded at {1 / times.document:,.0f} a second ({seen})"
    )


def _machine() -> Machine:
    if torch.cuda.is_available():
        return Machine(torch.cuda.get_device_name(), gpu=True, precision="16-mixed")
    threads = torch.get_num_threads()
    return Machine(f"{threads} CPU core{'s' * (threads > 1)}", gpu=False, precision=precision_on_cpu("bf16-mixed"))
