"""Reading the folder of a run, whole or not."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from splade_lit.card.record import read_record
from splade_lit.core.errors import UserError
from splade_lit.evaluation.per_query import PER_QUERY, QueryFigures, read_per_query
from splade_lit.report.system import BM25, Evaluation, System, figures_by_set
from splade_lit.runs.emissions import footprint, read_emissions

_FILES = ("metrics.json", "metrics.csv", PER_QUERY, "config.yaml", "emissions.csv")
# The stages of metrics.json that are a system's final figures: of a run, and of `evaluate`.
_FINAL = ("after", "model")

Log = dict[str, list[tuple[int, float]]]


def read_run(folder: Path, name: str) -> list[System]:
    """The system of a run and, if it was evaluated, BM25 on the same sets.

    Args:
        folder: of the run, or one with the metrics.json (and per_query.jsonl) that `evaluate` writes.
        name: how the system is shown.

    Raises:
        UserError: there is no run in the folder, or one of its files is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give that of a run, such as runs/quickstart.")
    if not any((folder / file).is_file() for file in _FILES):
        raise UserError(f"{folder} holds no run (none of {', '.join(_FILES)}); give the folder of a run.")
    stages = read_stages(folder / "metrics.json")
    per_query = read_per_query(folder / PER_QUERY)
    evaluations = read_evaluations(folder / "config.yaml")
    log = read_log(folder / "metrics.csv")
    stage, figures, notes = _figures_of(name, stages, log, evaluations)
    seconds, emissions = _cost(folder)
    model = folder / "model"
    run = System(
        name=name,
        kind="run",
        stage=stage,
        figures=figures,
        per_query=per_query.get(stage, []),
        before=figures_by_set(stages.get("before", {})),
        log=log,
        training_seconds=seconds,
        emissions_g=emissions,
        evaluations=evaluations,
        model=model if (model / "modules.json").is_file() else None,
        notes=notes,
    )
    return [run, *bm25_of(stages, per_query)]


def bm25_of(stages: Mapping[str, Mapping[str, float]], per_query: Mapping[str, Sequence[QueryFigures]]) -> list[System]:
    """BM25, if it is among the stages of an evaluation."""
    if "bm25" not in stages:
        return []
    words = stages["bm25"].get("bm25_words_ndcg@10", 0.0)
    pieces = stages["bm25"].get("bm25_wordpieces_ndcg@10", 0.0)
    over = "words" if words >= pieces else "WordPieces"
    figures = figures_by_set(stages["bm25"])
    return [System(BM25, "bm25", stage=over, figures=figures, per_query=per_query.get("bm25", ()))]


def read_stages(path: Path) -> dict[str, dict[str, float]]:
    """Stage to figures by full name; none if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return {}
    stages = read_json(path)
    if not isinstance(stages, dict) or not all(is_figures(figures) for figures in stages.values()):
        raise UserError(f"{path} does not hold an object of figures for each stage; evaluate again, or move it away.")
    return {stage: numbers(figures) for stage, figures in stages.items()}


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        UserError: it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON ({error}); write it anew, or move it away.") from error


def is_figures(value: Any) -> bool:
    """Whether a value is an object of numbers.

    >>> is_figures({"NanoNQ_dot_ndcg@10": 0.5}), is_figures({"after": {}}), is_figures([])
    (True, False, False)
    """
    return isinstance(value, dict) and all(isinstance(figure, int | float) for figure in value.values())


def numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """Those of the figures that are finite."""
    return {name: float(figure) for name, figure in figures.items() if math.isfinite(figure)}


def read_log(path: Path) -> Log:
    """Column of metrics.csv to its points: optimizer steps done, from 1 on, and the value.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return {}
    points: dict[str, dict[int, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = int(row["step"]) + 1  # Lightning counts from 0
                for name, value in row.items():
                    if name != "step" and value and math.isfinite(number := float(value)):
                        points.setdefault(name, {})[step] = number
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise UserError(f"{path} is not the log of a run (a column `step`, numbers below); move it away.") from error
    return {name: sorted(values.items()) for name, values in points.items()}


def read_evaluations(path: Path) -> tuple[Evaluation, ...]:
    """What a run was evaluated on, as far as its configuration tells.

    Raises:
        UserError: the file is not YAML.
    """
    if not path.is_file():
        return ()
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not YAML; restore it, or move it away.") from error
    trainer = settings.get("trainer") if isinstance(settings, dict) else None
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    evaluations = []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(callback, dict) and str(callback.get("class_path")).endswith("RetrievalEvaluation"):
            given = callback.get("init_args") or {}
            evaluations.append(
                Evaluation(
                    tasks=tuple(map(str, given.get("tasks") or ())),
                    nanobeir_source=given.get("nanobeir_source"),
                    nanobeir_revision=given.get("nanobeir_revision"),
                    max_corpus_documents=given.get("max_corpus_documents"),
                )
            )
    return tuple(evaluations)


def _figures_of(
    name: str, stages: Mapping[str, Mapping[str, float]], log: Log, evaluations: Sequence[Evaluation]
) -> tuple[str, dict[str, dict[str, float]], tuple[str, ...]]:
    """Stage and figures by set: the final ones, else the last of the log, else those before training."""
    for stage in _FINAL:
        if stage in stages:
            return stage, figures_by_set(stages[stage]), ()
    logged = {name.removeprefix("val/"): points[-1] for name, points in log.items() if name.startswith("val/")}
    ranked = [step for full, (step, _) in logged.items() if full.endswith("_dot_ndcg@10")]
    if ranked and all(one.max_corpus_documents is None for one in evaluations):
        last = max(ranked)
        note = f"{name} has not ended: its figures are those of its last evaluation, after step {last}."
        figures = figures_by_set({full: value for full, (step, value) in logged.items() if step == last})
        return f"step {last}", figures, (note,)
    if "before" in stages:
        note = f"{name} has not ended: its figures are those before training."
        return "before", figures_by_set(stages["before"]), (note,)
    return "", {}, (f"{name} has no retrieval figures: it was not evaluated.",)


def _cost(folder: Path) -> tuple[float | None, float | None]:
    """Seconds of training and g CO2eq of the whole run, each None if the run did not count it."""
    used = footprint(read_emissions(folder / "emissions.csv"))
    if used is not None:
        training = used.stages.get("training")
        return training.seconds if training else None, 1000 * used.total.emissions_kg
    card = read_record(folder / "model")
    seconds = card.training.seconds.get("training") if card and card.training else None
    return seconds, None
