"""What is compared: systems with their figures, whatever file those come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from splade_lit.evaluation.per_query import QueryFigures
from splade_lit.runs.run import Run
from splade_lit.runs.stages import Stages, by_set, over_wordpieces

Kind = Literal["run", "bm25", "other"]
# The stages that are final figures: of a run, and of `evaluate`.
FINAL = ("after", "model", "reranked")


@dataclass(frozen=True)
class System:
    """A run, BM25, or a system of somebody else.

    Attributes:
        name: as it is shown; untrusted text.
        kind: where it comes from.
        stage: which of its figures are shown: `after`, `step 90`, `before`; empty where it has but one kind.
        figures: set or group (`NanoNQ`, `NanoBEIR_mean`) to plain name (`ndcg@10`, `corpus_active_dims`) to figure.
        per_query: figures of single queries, a task each.
        run: the run that it is the model of, if there is one.
        search: what an exact search took here, where it was measured: `index_mb` and `search_ms`, see `search_costs`.
        notes: what a reader must know of its figures, a sentence each.
    """

    name: str
    kind: Kind
    stage: str = ""
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    per_query: Sequence[QueryFigures] = ()
    run: Run | None = None
    search: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def sampled(self) -> bool:
        """Whether its log has figures of a sample of a corpus."""
        return self.run is not None and any(one.max_corpus_documents is not None for one in self.run.evaluations)

    @property
    def before(self) -> dict[str, dict[str, float]]:
        """The figures before training, as `figures`."""
        return by_set(self.run.stages.get("before", {})) if self.run else {}

    @property
    def model(self) -> Path | None:
        """Folder of its model, if there is one."""
        return self.run.model if self.run else None

    def logged(self, metric: str) -> list[tuple[int, float]]:
        """Optimizer steps done, and the value of a metric of the log."""
        return [(step, row[metric]) for step, row in self.run.log.items() if metric in row] if self.run else []

    def figure(self, one: str, name: str) -> float | None:
        """A figure of a set, or what search or training cost; None if it is not known."""
        return self.figures.get(one, {}).get(name, self._costs.get(name))

    @property
    def _costs(self) -> dict[str, float]:
        costs = dict(self.search)
        if self.run and self.run.training_seconds is not None:
            costs["training_minutes"] = self.run.training_seconds / 60
        if self.run and self.run.footprint:
            costs["emissions_g"] = 1000 * self.run.footprint.total.emissions_kg
        return costs


def systems_of_run(run: Run, name: str) -> list[System]:
    """The system of a run, shown by this name, and, if it was evaluated, BM25 on the same sets."""
    stage, figures, notes = _figures_of(run, name)
    system = System(name, "run", stage, figures, run.per_query.get(stage, []), run, notes=notes)
    return [system, *bm25_of(run.stages, run.per_query)]


def bm25_of(stages: Stages, per_query: Mapping[str, Sequence[QueryFigures]]) -> list[System]:
    """BM25, if it is among the stages of an evaluation."""
    if "bm25" not in stages:
        return []
    over = "WordPieces" if over_wordpieces(stages["bm25"]) else "words"
    return [System("BM25", "bm25", over, by_set(stages["bm25"]), per_query.get("bm25", ()))]


def _figures_of(run: Run, name: str) -> tuple[str, dict[str, dict[str, float]], tuple[str, ...]]:
    """Stage and figures by set: the final ones, else the last of the log, else those before training."""
    for stage in FINAL:
        if stage in run.stages:
            return stage, by_set(run.stages[stage]), ()
    if all(one.max_corpus_documents is None for one in run.evaluations):
        for step, row in reversed(run.log.items()):
            if figures := by_set({name.removeprefix("val/"): value for name, value in row.items()}):
                note = f"{name} has not ended: its figures are those of its last evaluation, after step {step}."
                return f"step {step}", figures, (note,)
    if "before" in run.stages:
        note = f"{name} has not ended: its figures are those before training."
        return "before", by_set(run.stages["before"]), (note,)
    return "", {}, (f"{name} has no retrieval figures: it was not evaluated.",)


def sets_of(systems: Sequence[System]) -> list[str]:
    """All sets and groups, those of the most systems first, of equally many groups before sets."""
    names = list(dict.fromkeys(one for system in systems for one in system.figures))
    return sorted(names, key=lambda one: (-sum(one in system.figures for system in systems), not is_group(one)))


def is_group(one: str) -> bool:
    """Whether a name is that of a mean over sets."""
    return one.endswith("_mean")


def members(system: System, group: str) -> frozenset[str]:
    """The sets whose mean a group is, as far as the system has figures of them.

    >>> figures = {"NanoNQ": {}, "NanoMSMARCO": {}, "docstrings": {}, "NanoBEIR_mean": {}}
    >>> sorted(members(System("a", "run", figures=figures), "NanoBEIR_mean"))
    ['NanoMSMARCO', 'NanoNQ']
    """
    if not is_group(group):
        return frozenset({group}) & set(system.figures)
    start = group.removesuffix("BEIR_mean").removesuffix("_mean")
    return frozenset(one for one in system.figures if one.startswith(start) and not is_group(one))


def printable(text: str) -> str:
    r"""The text with a replacement for each character that a terminal would act on.

    >>> printable("a\x1b[31m") == "a\ufffd[31m"
    True
    """
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
