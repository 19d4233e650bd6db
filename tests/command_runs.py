"""What tests of the commands share: a tiny base model with pairs and tasks, and ways to call a command as users do."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lightning as L
import pytest
import torch
import yaml
from conftest import REPOSITORY, tiny_masked_lm
from safetensors.torch import load_file
from tiny_runs import save_base, write_pairs
from transformers import PreTrainedTokenizerBase

from splade_lit.command_line.exit_codes import run_command

RETRIEVAL = "splade_lit.training.callbacks.retrieval.RetrievalEvaluation"
CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
NDCG = "NanoBEIR_mean_dot_ndcg@10"
# What `python -m` takes, and the module that it runs.
COMMANDS = {
    name.removesuffix(".__main__"): name
    for path in sorted((REPOSITORY / "splade_lit").rglob("*.py"))
    if "run_command(main)" in path.read_text(encoding="utf-8")
    for name in [".".join(path.relative_to(REPOSITORY).with_suffix("").parts)]
}
SPARSITY = "splade_lit.training.callbacks.sparsity_monitor.SparsityMonitor"


@dataclass(frozen=True)
class World:
    """Files that a run needs: `base` a model, `pairs` a jsonl file, `tasks` a folder in NanoBEIR's layout."""

    folder: Path
    base: Path
    pairs: Path
    tasks: Path

    def config(self, run: Path, changes: dict[str, Any] | None = None) -> Path:
        """A YAML file that trains 6 steps of 8 pairs into `run`; `changes` by dotted name."""
        settings: dict[str, Any] = {
            "seed_everything": 3,
            "model": {
                "base_model": str(self.base),
                "learning_rate": 1.0e-3,
                "max_query_tokens": 16,
                "max_document_tokens": 32,
            },
            "data": {
                "source": str(self.pairs),
                "num_eval_pairs": 16,
                "batch_size": 8,
                "cache_dir": str(self.folder / "cache"),
            },
            "trainer": {
                "default_root_dir": str(run),
                "accelerator": "cpu",
                "max_steps": 6,
                "log_every_n_steps": 1,
                "val_check_interval": 3,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "callbacks": [
                    {"class_path": RETRIEVAL, "init_args": {"tasks": [str(self.tasks)], "bm25": True}},
                    {"class_path": SPARSITY, "init_args": {"every_n_steps": 2, "num_documents": 16}},
                ],
            },
        }
        for name, value in (changes or {}).items():
            *groups, last = name.split(".")
            place = settings
            for group in groups:
                place = place.setdefault(group, {})
            place[last] = value
        path = run.parent / f"{run.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return path


def make_world(folder: Path, tokenizer: PreTrainedTokenizerBase) -> World:
    """Write the files: a random BERT of two layers, 64 pairs, two tasks of 30 documents."""
    base = save_base(folder / "base", tiny_masked_lm("bert", len(tokenizer)), tokenizer)
    pairs = write_pairs(folder / "pairs.jsonl", tokenizer)
    tasks = write_nanobeir(folder / "tasks", tokenizer, ("NanoMSMARCO", "NanoNQ"))
    return World(folder, base, pairs, tasks)


def write_nanobeir(folder: Path, tokenizer: PreTrainedTokenizerBase, splits: Sequence[str]) -> Path:
    """Write retrieval sets of 30 documents and 6 queries; queries are words of the document that answers them."""
    rng = random.Random(5)
    words = sorted(token for token in tokenizer.get_vocab() if token.isalpha() and len(token) > 1)
    listing: dict[str, list[dict[str, str]]] = {"corpus": [], "queries": [], "qrels": []}
    for split in splits:
        texts = [rng.choices(words, k=rng.randint(8, 30)) for _ in range(30)]
        parts = {
            "corpus": [{"_id": f"d{n}", "text": " ".join(text)} for n, text in enumerate(texts)],
            "queries": [{"_id": f"q{n}", "text": " ".join(rng.sample(texts[n], k=4))} for n in range(6)],
            "qrels": [{"query-id": f"q{n}", "corpus-id": f"d{n}"} for n in range(6)],
        }
        for part, rows in parts.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(rows).to_parquet(folder / part / f"{split}.parquet")
            listing[part].append({"split": split, "path": f"{part}/{split}.parquet"})
    configs = [{"config_name": part, "data_files": files} for part, files in listing.items()]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last line of its output."""
        return self.out.strip().splitlines()[-1]

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that tell an error."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def call(main: Callable[[Sequence[str] | None], None], *arguments: object) -> Outcome:
    """Call a command in this process the way that `python -m` does."""
    code = 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            run_command(main, [str(argument) for argument in arguments])
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    return Outcome(code, out.getvalue(), err.getvalue())


def environment(**changes: str) -> dict[str, str]:
    """The environment of the tests, in which the package of this checkout is imported from any folder."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | changes


def command(module: str, *arguments: object, cwd: Path, stdin: str = "", **changes: str) -> Outcome:
    """Run `python -m MODULE ARGUMENTS` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env=environment(**changes),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def _answer_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the tests themselves may run where it is ignored: in the background


def interrupted(
    config: Path,
    cwd: Path,
    ready: Callable[[], bool],
    number: int = signal.SIGINT,
    send: Callable[[int, int], None] = os.kill,
) -> Outcome:
    """Run `python -m splade_lit.fit` in a process of its own and send a signal, Ctrl-C's, once `ready` says so."""
    process = subprocess.Popen(
        [sys.executable, "-m", "splade_lit.fit", "--config", str(config)],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_answer_ctrl_c,
    )
    try:
        deadline = time.monotonic() + 500
        while not ready():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        send(process.pid, number)
        out, err = process.communicate(timeout=300)  # also waits for processes that it has started
    finally:
        process.kill()
    return Outcome(process.returncode, out, err)


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


class FailsAfter(L.Callback):
    """A callback that raises after so many optimizer steps.

    Args:
        steps: optimizer steps.
        hook: where in Lightning's step.
    """

    def __init__(self, steps: int, hook: str = "on_train_batch_end") -> None:
        self.steps = steps
        setattr(self, hook, self._fail)

    def _fail(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.steps:
            raise RuntimeError("the disk is gone")


class SignalsAfter(FailsAfter):
    """A callback that sends its own process a signal, SIGTERM's if none is given, after so many optimizer steps."""

    def __init__(self, steps: int, hook: str = "on_train_batch_end", number: int = int(signal.SIGTERM)) -> None:
        super().__init__(steps, hook)
        self.number = number

    def _fail(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.steps:
            os.kill(os.getpid(), self.number)


def rows(run: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def steps(run: Path) -> list[int]:
    """The steps that have a row in metrics.csv."""
    return [int(row["step"]) for row in rows(run)]


def reports(run: Path) -> list[dict[str, Any]]:
    """The reports in a run's sparsity.jsonl."""
    return [json.loads(line) for line in (run / "sparsity.jsonl").read_text().splitlines()]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds."""
    return torch.load(path, weights_only=True)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the model that a run saved."""
    files = sorted((run / "model").rglob("*.safetensors"))
    assert len(files) == 2
    return {f"{file.parent.name}.{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_weights(run: Path, other: Path) -> None:
    """Two runs saved the same model."""
    ours, expected = weights(run), weights(other)
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


def same_figures(ours: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether figures are equal but for rounding."""
    return ours == pytest.approx(expected, rel=1e-5)
