"""What tests of comparisons share: real runs, one of them stopped, and what a page shows."""

import json
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import pytest
from command_runs import CHECKPOINT, RETRIEVAL, SPARSITY, Outcome, World, call, make_world
from transformers import PreTrainedTokenizerBase

from splade_lit import compare, fit

CARBON = "splade_lit.training.callbacks.carbon.CarbonTracker"


@dataclass(frozen=True)
class Runs:
    """Folders of runs: two whole ones that differ in their penalty, and one that failed after 4 of 6 steps."""

    world: World
    dense: Path
    sparse: Path
    stopped: Path


def make_runs(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Runs:
    """Train them."""
    world = make_world(folder / "world", tokenizer)
    for name, lambda_d in (("dense", 0.0), ("sparse", 0.5), ("stopped", 0.0)):
        callbacks = [
            {
                "class_path": RETRIEVAL,
                "init_args": {"tasks": [str(world.tasks)], "bm25": name != "stopped", "every_n_steps": 2},
            },
            {"class_path": SPARSITY, "init_args": {"every_n_steps": 2, "num_documents": 16}},
            {"class_path": CARBON, "init_args": {"measure_power_secs": 1.0}},
            {"class_path": CHECKPOINT, "init_args": {"every_n_train_steps": 2}},
        ]
        if name == "stopped":
            callbacks.append({"class_path": "command_runs.FailsAfter", "init_args": {"steps": 4}})
        changes = {"trainer.callbacks": callbacks, "model.lambda_d": lambda_d, "model.learning_rate": 2e-3}
        config = world.config(folder / name, changes)
        if name == "stopped":
            with pytest.raises(RuntimeError, match="the disk is gone"):
                fit.main(["--config", str(config)])
        else:
            outcome = call(fit.main, "--config", config)
            assert outcome.code == 0, outcome.err
    return Runs(world, folder / "dense", folder / "sparse", folder / "stopped")


def copy_run(run: Path, to: Path, *left_out: str) -> Path:
    """A copy of a run without checkpoints and without these files or folders."""
    return Path(shutil.copytree(run, to, ignore=shutil.ignore_patterns("checkpoints", *left_out)))


def query_rows(run: Path, stage: str) -> list[dict[str, object]]:
    """The lines of a run's per_query.jsonl at a stage."""
    lines = map(json.loads, (run / "per_query.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["stage"] == stage]


@dataclass
class Page(HTMLParser):
    """What a page shows: its tables as text, the titles of its charts, and the texts of their points."""

    path: Path
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in ("caption", "figcaption", "title", "td", "th", "tr"):
            self._open.append(tag)
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
        if tag == "figcaption":
            self.captions.append("")
        if tag == "title":
            self.points.append("")
        if tag == "caption":
            self._rows = []
            self.tables[""] = self._rows

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        kind = self._open[-1] if self._open else ""
        if kind == "caption":
            self.tables[data] = self.tables.pop("")
        elif kind in ("td", "th"):
            self._rows[-1][-1] += data.strip()
        elif kind == "figcaption":
            self.captions[-1] += data
        elif kind == "title":
            self.points[-1] += data

    def row(self, table: str, *names: str) -> dict[str, str]:
        """Column to text of the row that begins with these names."""
        columns, *rows = self.tables[table]
        (found,) = [row for row in rows if row[: len(names)] == list(names)]
        return dict(zip(columns, found, strict=True))


def assert_one_sentence(outcome: Outcome, *parts: str) -> None:
    """That a command ended with one sentence, which holds these parts."""
    assert (outcome.code, len(outcome.errors)) == (2, 1), outcome.err
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.errors[0]


def compared(tmp_path: Path, *arguments: object) -> tuple[Outcome, Page]:
    outcome = call(compare.main, *arguments, "--output", tmp_path / "page.html")
    assert outcome.code == 0, outcome.err
    return outcome, Page(tmp_path / "page.html")


def holm_closed(p_values: dict[str, float]) -> dict[str, float]:
    """The largest Bonferroni p of all families that a hypothesis is in."""
    families = [family for size in range(1, len(p_values) + 1) for family in combinations(p_values, size)]
    return {
        name: max(min(1.0, len(f) * min(p_values[one] for one in f)) for f in families if name in f)
        for name in p_values
    }


def peer_results(runs: Runs, folder: Path) -> Path:
    """A folder with what sentence-transformers' evaluator says of a run's model, as JSON and as CSV."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.evaluation import SparseNanoBEIREvaluator

    evaluator = SparseNanoBEIREvaluator(["msmarco", "nq"], dataset_id=str(runs.world.tasks), batch_size=16)
    (folder / "csv").mkdir()
    figures = evaluator(SparseEncoder(str(runs.sparse / "model"), device="cpu"), output_path=str(folder / "csv"))
    (folder / "figures.json").write_text(json.dumps(figures))
    return folder
