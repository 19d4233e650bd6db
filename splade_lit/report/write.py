"""A comparison from its beginning to its end: read systems, measure search, print the tables, write the page."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from splade_lit.command_line.devices import pick_device
from splade_lit.core.errors import UserError
from splade_lit.core.files import replace_text
from splade_lit.data.tasks import load_tasks
from splade_lit.evaluation.measures import measure_names
from splade_lit.evaluation.metric_names import METRICS
from splade_lit.evaluation.task_evaluation import with_measures
from splade_lit.report.comparison import QUANTITIES, Comparison, compare, headline_of, with_one_bm25
from splade_lit.report.measure import find_tasks, measure
from splade_lit.report.other_systems import needs_tasks, read_results
from splade_lit.report.page import finding, html
from splade_lit.report.rows import (
    cost_rows,
    measure_rows,
    quality_rows,
    set_rows,
    terminal_table,
    test_rows,
    wide_console,
)
from splade_lit.report.system import members, printable, sets_of, systems_of_run
from splade_lit.runs.machine import hardware
from splade_lit.runs.run import read_run


def write_report(settings: Namespace) -> None:
    """Read, measure, print the tables and write the page, with the options of `python -m splade_lit.compare`.

    Raises:
        UserError: a folder or file is none of what is compared, or the page cannot be written.
    """
    device = pick_device(settings.device)
    nanobeir = settings.nanobeir_source, settings.nanobeir_revision
    of_metric = [] if settings.metric in METRICS else [settings.metric]
    measures = measure_names([*settings.measures, *of_metric])
    metric = measure_names(of_metric)[0] if of_metric else settings.metric
    tasks = load_tasks(settings.tasks, *nanobeir) if settings.tasks else None
    groups = [systems_of_run(read_run(path), name) for name, path in _names(settings.runs)]
    notes: list[str] = []
    measured = settings.search_documents > 0 and any(group[0].model is not None for group in groups)
    ranked = any(needs_tasks(path) for _, path in _named(settings.results))
    if tasks is None and (measured or ranked):
        tasks, notes = find_tasks([group[0] for group in groups])
    judged = with_measures(tasks or [], measures) if ranked else []
    groups += [read_results(path, name, judged) for name, path in _named(settings.results)]
    systems = with_one_bm25(groups)
    names = [system.name for system in systems]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two systems are called {repeated[0]!r}; name one with --results NAME=PATH.")
    headline = headline_of(systems, settings.set)
    for name in measures:
        if not any(system.figure(headline, name) is not None for system in systems):
            ways = "evaluate with --measures, or name it in measures of RetrievalEvaluation"
            raise UserError(f"no system has {name} on {headline or 'any set'}; {ways}.")
    searched = None
    if measured and tasks:
        # The task that the charts are about, or the first one of their group, or the first one there is.
        of_group = frozenset().union(*(members(system, headline) for system in systems))
        task = next((task for task in tasks if task.name in of_group), tasks[0])
        systems, searched = measure(systems, task, settings.search_documents, device)
        if searched.num_documents > settings.search_documents:
            notes.append(
                f"Search was measured on {searched.num_documents:,} documents of {searched.task}, not "
                f"{settings.search_documents:,}: all documents that have a judgement are kept."
            )
    comparison = compare(systems, headline, metric, searched, notes)
    replace_text(settings.output, html(comparison, hardware([]).cpu_model or "unknown processor"))
    _print(comparison)
    print(f"report: {settings.output}")


def _named(paths: Sequence[str]) -> list[tuple[str, Path]]:
    """Name and path of each `NAME=PATH` or `PATH`."""
    named = []
    for given in paths:
        name, equals, path = given.partition("=")
        # A path may hold an equals sign itself.
        named.append((name, Path(path)) if equals and name and not os.path.exists(given) else ("", Path(given)))
    return [(printable(name or path.resolve().stem), path) for name, path in named]


def _names(folders: Sequence[Path]) -> list[tuple[str, Path]]:
    """Name and folder of each run: as much of its path as tells it from the others."""
    paths = [folder.resolve() for folder in folders]
    if repeated := [str(folder) for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1]:
        raise UserError(f"{repeated[0]} is given twice; give each run once.")
    parts = 1
    while len({path.parts[-parts:] for path in paths}) < len(paths):
        parts += 1
    return [(printable("/".join(path.parts[-parts:])), folder) for path, folder in zip(paths, folders, strict=True)]


def _print(comparison: Comparison) -> None:
    console = wide_console()
    shown = [metric for metric in METRICS if metric in ("ndcg@10", "mrr@10", "recall@10", comparison.metric)]
    tables = [quality_rows(comparison, shown)] if comparison.headline else []
    if measures := measure_rows(comparison):
        tables.append(measures)
    if len(sets_of(comparison.systems)) > 1:
        tables.append(set_rows(comparison))
    tables.append(cost_rows(comparison))
    if comparison.differences:
        tables.append(test_rows(comparison))
    for rows in tables:
        console.print(terminal_table(rows))
    front = ["* front: no other system is both better and sparser"] if any(comparison.front(QUANTITIES[0])) else []
    for line in (*front, *(f"note: {note}" for note in comparison.notes), f"{finding(comparison)}."):
        console.print(Text(line))
