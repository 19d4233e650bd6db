"""Which settings help? Variants of an experiment, trained one after the other and measured at the same active dims.

    python scripts/ablate.py --config experiments/nq_minilm_cpu.yaml --variants scripts/ablations.yaml \
        --tasks ../shared/data/beir/nfcorpus ../shared/data/beir/nq-oracle --max-corpus-documents 1500 \
        --active-dims 150 --output runs/ablations

The file of variants has a name for each and what it changes of the experiment, by dotted names; the first is what the
others change further, and what they are compared with unless `--baseline` names another. Models differ in sparsity, so
that all are measured twice: as they are, and with the smallest weights of each task's corpus left out down to one
number of active dims. Differences are tested query by query.

Runs are kept: what is there is not trained or encoded again, so that the command can be stopped, repeated, and given
further variants. It prints a table in Markdown, for experiments/LOG.md.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from peer_measures import METRIC, Measures

from splade_lit.core.errors import UserError
from splade_lit.core.files import replace_text
from splade_lit.data.tasks import RetrievalTask, load_tasks
from splade_lit.evaluation.paired_tests import differences
from splade_lit.evaluation.per_query import query_figures
from splade_lit.evaluation.task_evaluation import sample_corpus


@dataclass(frozen=True)
class Line:
    """A variant on a task: active dims and nDCG@10 as it is and cut, and what it gains on the first, with p (t)."""

    task: str
    variant: str
    dims: float
    ndcg: float
    cut_ndcg: float
    gain: float | None
    p: float | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, measure, and print the tables."""
    options = _parser().parse_args(arguments)
    variants = _variants(options.config, options.variants, options.only, options.baseline)
    tasks = load_tasks(options.tasks)
    if options.max_corpus_documents:
        tasks = [sample_corpus(task, options.max_corpus_documents) for task in tasks]
    runs = {name: options.output / name for name in variants}
    for name, settings in variants.items():
        _train(settings, runs[name])
    measures = Measures(tasks, "threshold")
    for task in tasks:
        print(f"\n{_table(task_lines(measures, task, runs, options.active_dims), options.active_dims)}", flush=True)


def _variants(
    config: Path, path: Path, only: Sequence[str] | None, baseline: str | None = None
) -> dict[str, dict[str, Any]]:
    """The whole settings of the baseline, the file's first unless named, then of those that `only` names, or of all.

    Raises:
        UserError: the file holds no variants, has none of a name that is given, or two come to the same settings.
    """
    variants = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(variants, dict) or not all(isinstance(one, dict) for one in variants.values()):
        raise UserError(f"{path}: give a name for each variant, and below it the settings that it changes.")
    first, base = next(iter(variants.items()))
    baseline = baseline or first
    if unknown := {baseline, *(only or ())} - set(variants):
        raise UserError(f"{path} has no {', '.join(sorted(unknown))}; it has {', '.join(variants)}.")
    found: dict[str, dict[str, Any]] = {}
    for name, changes in variants.items():
        settings = _changed(yaml.safe_load(config.read_text(encoding="utf-8")), {**base, **changes})
        if same := [other for other, there in found.items() if there == settings]:
            raise UserError(
                f"{path}: with {config}, {name} has the settings of {same[0]}; change one, or take it away."
            )
        found[name] = settings
    wanted = [baseline, *(name for name in found if only is None or name in only)]
    return {name: found[name] for name in wanted}


def _changed(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with other values, by dotted names."""
    for name, value in changes.items():
        *groups, last = name.split(".")
        place = settings
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return settings


def _train(settings: dict[str, Any], folder: Path) -> None:
    """Train a variant in a process of its own; a folder with other settings is refused."""
    stamp, path, log = (folder.with_name(f"{folder.name}.{end}") for end in ("variant.yaml", "yaml", "log"))
    text = yaml.safe_dump(settings, sort_keys=True)
    if stamp.is_file():
        if stamp.read_text(encoding="utf-8") != text:
            raise UserError(f"{folder} was trained with other settings ({stamp}); delete it, or give another --output.")
        return
    placed = _changed(settings, {"trainer.default_root_dir": str(folder)})
    replace_text(path, yaml.safe_dump(placed, sort_keys=False))
    print(f"training {folder.name}", flush=True)
    since = time.monotonic()
    command = [sys.executable, "-m", "splade_lit.fit", "--config", str(path), "--overwrite", "true"]
    with log.open("w", encoding="utf-8") as file:
        ended = subprocess.run(command, env=os.environ, stdout=file, stderr=subprocess.STDOUT, check=False)
    if ended.returncode:
        end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        sys.exit(f"error: {folder.name} ended with code {ended.returncode}; its log, {log}, ends:\n{end}")
    print(f"{folder.name}: {time.monotonic() - since:.0f} s", flush=True)
    replace_text(stamp, text)


def task_lines(
    measures: Measures, task: RetrievalTask, runs: Mapping[str, Path], active_dims: float | None
) -> list[Line]:
    """The lines of a task; without a number of active dims, all are cut to those of the sparsest."""
    dims = {name: measures.active_dims(run, task) for name, run in runs.items()}
    wanted = min([*dims.values(), *([active_dims] if active_dims else [])])
    cut = {name: measures.result(run, task, wanted) for name, run in runs.items()}
    figures = {name: [query_figures(task, result.rank_metrics)] for name, result in cut.items()}
    first = next(iter(runs))
    lines = []
    for name, run in runs.items():
        gain = p = None
        if name != first:
            (difference,) = differences({name: figures[name], first: figures[first]}, frozenset([task.name]), METRIC)
            gain, p = (1 if difference.first == name else -1) * difference.mean, difference.p_t
        whole = measures.result(run, task).metrics[METRIC]
        lines.append(Line(task.name, name, dims[name], whole, cut[name].metrics[METRIC], gain, p))
    return lines


def _table(lines: Sequence[Line], active_dims: float | None) -> str:
    """Lines in Markdown."""
    at = f"{active_dims:g} dims" if active_dims else "equal dims"
    rows = [f"| {lines[0].task} | active dims | nDCG@10 | at {at} | gain | p |", "|---|---|---|---|---|---|"]
    for line in lines:
        gain = "" if line.gain is None else f"{line.gain:+.4f}"
        p = "" if line.p is None else f"{line.p:.2g}"
        rows.append(f"| {line.variant} | {line.dims:.0f} | {line.ndcg:.4f} | {line.cut_ndcg:.4f} | {gain} | {p} |")
    return "\n".join(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train variants of an experiment and compare them at equal dims.")
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the experiment")
    parser.add_argument("--variants", type=Path, required=True, help="YAML file: names, and what each changes")
    parser.add_argument("--only", nargs="+", help="names of the variants to train, besides the baseline (default: all)")
    parser.add_argument("--baseline", help="name of the variant that the others are compared with (default: the first)")
    parser.add_argument("--tasks", nargs="+", required=True, help="tasks, as of python -m splade_lit.evaluate")
    parser.add_argument("--max-corpus-documents", type=int, help="documents of a task, all judged ones among them")
    parser.add_argument(
        "--active-dims", type=float, help="mean active dims that all are cut to (default: those of the sparsest)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for runs and vectors")
    return parser


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
