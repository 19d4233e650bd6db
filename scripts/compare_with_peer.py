"""Who makes the better model: an experiment of ours, or sentence-transformers' own trainer given the same?

    python scripts/compare_with_peer.py --config experiments/nq_minilm_cpu.yaml --minutes 60 --seeds 1 2 \
        --tasks ../shared/data/beir/nfcorpus docstrings --active-dims 200 --output runs/against_peer

Both sides start from one saved model (the base model with its head, decoder bias and query table as the experiment
starts them), see the same training pairs, and train for the same wall-clock time, one after the other, in turns that
alternate from seed to seed. Time is turned into optimizer steps by measuring a few first, so that learning rates
reach 0 where training ends; reading data and making a teacher's vectors count. sentence-transformers' trainer has the
experiment's learning rates, batch size, accumulation, precision and clipping, its own batches, its own schedule of the
penalty, and a lambda: of several (--peer-lambdas), the one that ends best on the tasks is taken, which favours it.
So does the shared start: with --peer-start model.idf=ones it has the query table of ones that it makes by itself.

Models differ in sparsity, so that all are measured twice: as they are, and cut to one number of active dims a document,
by one method for all: on each task the smallest weights of the corpus's vectors are left out (--cut threshold), or all
but the largest of each document (--cut cap). nDCG@10 of the sides is compared query by query, means over the seeds.

Everything stays in the output folder: a run that is there already is not trained again, vectors are not made again, so
the command can be stopped, repeated, and repeated with other tasks or dims.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from peer_measures import METRIC, Measures, Row, measure_task, shown
from peer_plan import Plan, changed_settings, our_config, start_config
from peer_sides import check_carried
from rich.console import Console

from splade_lit.core.errors import UserError
from splade_lit.core.files import replace_text
from splade_lit.data.tasks import load_tasks
from splade_lit.evaluation.paired_tests import Difference

SCRIPTS = Path(__file__).resolve().parent
_RESERVE = 0.98  # of the time that steps are planned for


class Trainings:
    """Trains what is not there yet in the output folder."""

    def __init__(self, plan: Plan, output: Path) -> None:
        self.plan, self.output = plan, output

    def start(self) -> None:
        """The model that both sides start from, or one for each."""
        for config, folder in ((self.plan.config, "start"), (self.plan.peer_start, "peer-start")):
            if config is not None and not (self.output / folder / "done.json").is_file():
                self._ours(start_config(config, self.output / folder), self.output / folder)
                _done(self.output / folder, {})

    def ours(self, seed: int) -> Path:
        """A run of ours."""
        folder = self.output / f"ours-seed{seed}"

        def train(place: Path, steps: int, stop: float | None, probe: bool) -> None:
            self._ours(our_config(self.plan.config, self.output, place, seed, steps, stop), place)

        return self._timed(folder, train, self.plan.minutes)

    def peer(self, seed: int, lambda_d: float, minutes: float | None) -> Path:
        """A run of the peer's trainer."""
        of_time = "" if minutes == self.plan.minutes else f"-{minutes:g}min"
        folder = self.output / f"peer-lambda{lambda_d:g}-seed{seed}{of_time}"

        def train(place: Path, steps: int, stop: float | None, probe: bool) -> None:
            changes = {"max_steps": steps, "stop_seconds": stop, "save": not probe}
            self._run("peer", self.plan.peer_settings(self.output, place, seed, lambda_d, **changes).text(), place)

        return self._timed(folder, train, minutes)

    def _timed(self, folder: Path, train: Any, minutes: float | None) -> Path:
        """Measure steps, train for as many as there is time for, and note what it took."""
        if (folder / "done.json").is_file():
            return folder
        steps, stop, planned = self.plan.steps, None, {}
        if steps is None:
            assert minutes is not None
            probe, stop = folder.with_name(f"{folder.name}-probe"), 60 * minutes
            shutil.rmtree(probe, ignore_errors=True)
            probe.mkdir(parents=True)
            train(probe, self.plan.probe_steps, None, True)
            planned = _clock(probe)
            shutil.rmtree(probe)
            steps = int(_RESERVE * (stop - planned["setup_seconds"]) / planned["step_seconds"])
            if steps < 1:
                sys.exit(f"error: {minutes:g} minutes are too few for a step of {folder.name}; give more.")
            _say(
                f"{folder.name}: {planned['step_seconds']:.2f} s a step after {planned['setup_seconds']:.0f} s: "
                f"{steps} steps"
            )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        train(folder, steps, stop, False)
        took = _clock(folder)
        _say(f"{folder.name}: {took['steps']} of {steps} steps in {took['seconds'] / 60:.1f} min")
        _done(folder, took | {"planned_steps": steps, "probe": planned})
        return folder

    def _ours(self, config: dict, folder: Path) -> None:
        path = self.output / "configs" / f"{folder.name}.yaml"
        replace_text(path, yaml.safe_dump(config, sort_keys=False))
        self._run("ours", str(path), folder)

    def _run(self, side: str, argument: str, folder: Path) -> None:
        _say(f"training {folder.name}")
        log = self.output / "logs" / f"{folder.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        # For both sides as commands here have it.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, str(SCRIPTS / "peer_sides.py"), side, argument]
        with log.open("w", encoding="utf-8") as file:
            ended = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
        if ended.returncode:
            sys.exit(f"error: {folder.name} ended with code {ended.returncode}; its log, {log}, ends:\n{_tail(log)}")


def _clock(folder: Path) -> dict[str, float]:
    return json.loads((folder / "clock.json").read_text(encoding="utf-8"))


def _done(folder: Path, took: dict[str, Any]) -> None:
    replace_text(folder / "done.json", json.dumps(took, indent=2) + "\n")


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]


def _say(text: str) -> None:
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, measure, and print both sides."""
    options = _parser().parse_args(arguments)
    if (options.minutes is None) == (options.steps is None):
        sys.exit("error: give --minutes, or --steps in their place.")
    output = options.output
    plan = _plan(options)
    _check_plan(output, plan)
    tasks = load_tasks(options.tasks)
    trainings, measures = Trainings(plan, output), Measures(tasks, options.cut)
    trainings.start()
    start = output / "start"
    lambda_d = plan.lambdas[0]
    if len(plan.lambdas) > 1:
        lambda_d = _best_lambda(plan, trainings, measures, options.active_dims)
    ours, peer = [], []
    for turn, seed in enumerate(plan.seeds):
        for side in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
            if side == "ours":
                ours.append(trainings.ours(seed))
            else:
                peer.append(trainings.peer(seed, lambda_d, plan.minutes))
    rows, found = [], {}
    for task in tasks:
        lines, found[task.name] = measure_task(measures, task, ours, peer, start, options.active_dims)
        rows += lines
    bm25 = {}
    if options.bm25:
        from splade_lit.encoder.model import AsymmetricSparseEncoder
        from splade_lit.evaluation.bm25 import best_bm25

        _, results = best_bm25(tasks, AsymmetricSparseEncoder.load(start / "model").tokenizer)
        bm25 = {result.name: result.metrics[METRIC] for result in results}
    console = Console(width=140)
    for table in shown(rows, bm25, found):
        console.print(table)
    _write(output, rows, bm25, found, [*ours, *peer], lambda_d, options)


def _best_lambda(plan: Plan, trainings: Trainings, measures: Measures, active_dims: float | None) -> float:
    """The lambda of the peer whose model has the highest mean nDCG@10 at the dims wanted."""
    means = {}
    for lambda_d in plan.lambdas:
        run = trainings.peer(plan.seeds[0], lambda_d, plan.lambda_minutes or plan.minutes)
        results = [measures.result(run, task, active_dims) for task in measures.tasks]
        dims = np.mean([measures.active_dims(run, task) for task in measures.tasks])
        means[lambda_d] = float(np.mean([result.metrics[METRIC] for result in results]))
        _say(f"peer, lambda {lambda_d:g}: mean {METRIC} {means[lambda_d]:.4f}; {dims:.0f} active dims before the cut")
    best = max(means, key=means.__getitem__)
    _say(f"peer, lambda {best:g} is taken")
    return best


def _plan(options: argparse.Namespace) -> Plan:
    config = changed_settings(yaml.safe_load(Path(options.config).read_text(encoding="utf-8")), options.ours)
    check_carried(config)
    lambda_d = config.get("model", {}).get("lambda_d")
    lambdas = options.peer_lambdas or [float(lambda_d) if isinstance(lambda_d, int | float) else 3e-3]
    peer = {
        name: getattr(options, f"peer_{name}")
        for name in ("batch_size", "micro_batch_size", "learning_rate", "idf_learning_rate")
    }
    return Plan(
        config,
        options.seeds,
        options.minutes,
        options.steps,
        options.probe_steps,
        lambdas,
        options.lambda_minutes,
        peer,
        changed_settings(config, options.peer_start) if options.peer_start else None,
    )


def _check_plan(output: Path, plan: Plan) -> None:
    """Refuse an output folder whose models were trained in another way."""
    trained = {"config": plan.config, "minutes": plan.minutes, "steps": plan.steps, "peer": plan.peer}
    trained["peer_start"] = plan.peer_start
    text = json.dumps(trained, indent=2, sort_keys=True) + "\n"
    path = output / "plan.json"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        sys.exit(f"error: {output} holds runs of other settings (see plan.json); choose another --output.")
    replace_text(path, text)


def _write(
    output: Path,
    rows: Sequence[Row],
    bm25: Mapping[str, float],
    found: Mapping[str, Difference],
    runs: Sequence[Path],
    lambda_d: float,
    options: argparse.Namespace,
) -> None:
    content = {
        "active_dims": options.active_dims,
        "cut": options.cut,
        "peer_lambda": lambda_d,
        "runs": {run.name: json.loads((run / "done.json").read_text(encoding="utf-8")) for run in runs},
        "rows": [vars(row) for row in rows],
        "bm25": dict(bm25),
        "differences": {
            task: {
                "ours_minus_peer": one.mean if one.first == "ours" else -one.mean,
                "p_t": one.p_t,
                "p_random": one.p_random,
                "queries": len(one.values),
            }
            for task, one in found.items()
        },
    }
    replace_text(output / "results.json", json.dumps(content, indent=2) + "\n")
    _say(f"written: {output / 'results.json'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare an experiment with sentence-transformers' trainer.")
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    parser.add_argument("--ours", nargs="+", default=[], metavar="NAME=VALUE", help="settings of it to change")
    parser.add_argument("--tasks", nargs="+", required=True, help="tasks, as of python -m splade_lit.evaluate")
    parser.add_argument("--output", type=Path, required=True, help="folder for models, vectors and results")
    parser.add_argument("--minutes", type=float, help="wall-clock time of each training, reading of data included")
    parser.add_argument("--steps", type=int, help="optimizer steps of each training, in place of a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="seeds of both sides (default: 1 2)")
    parser.add_argument(
        "--active-dims",
        type=float,
        help="mean active dims of a document that all are cut to (default: those of the sparsest model of either side)",
    )
    parser.add_argument("--cut", choices=["threshold", "cap"], default="threshold", help="how (default: threshold)")
    parser.add_argument("--probe-steps", type=int, default=25, help="steps that are measured first (default: 25)")
    parser.add_argument(
        "--peer-lambdas",
        type=float,
        nargs="+",
        help="weights of the peer's penalty, of which the best is taken (default: the experiment's lambda_d if it is a "
        "number, else 0.003)",
    )
    parser.add_argument(
        "--lambda-minutes",
        type=float,
        help="time of each training that lambdas are compared by (default: that of all trainings)",
    )
    for name, kind in (("batch-size", int), ("micro-batch-size", int), ("learning-rate", float)):
        parser.add_argument(f"--peer-{name}", type=kind, help="of the peer's trainer (default: as the experiment)")
    parser.add_argument("--peer-idf-learning-rate", type=float, help="of the peer's query weights (default: likewise)")
    parser.add_argument(
        "--peer-start",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="settings of the start model of the peer alone (default: both start from one model)",
    )
    parser.add_argument("--bm25", action="store_true", help="evaluate BM25 too")
    return parser


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
