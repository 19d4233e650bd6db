"""What is compared: systems with their figures, whatever file those come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from splade_lit.evaluation.per_query import QueryFigures
from splade_lit.runs.stages import by_set

Kind = Literal["run", "bm25", "other"]
BM25 = "BM25"


@dataclass(frozen=True)
class SearchCost:
    """What an exact search took here.

    Attributes:
        index_bytes: memory of the index.
        median_ms: of the times of the queries, one thread, text to vector not included.
        p95_ms: time that 95 of 100 queries stay below.
    """

    index_bytes: int
    median_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Evaluation:
    """What a run was evaluated on, by its configuration: arguments of `load_tasks`, and the sample while training."""

    tasks: tuple[str, ...]
    nanobeir_source: str | None = None
    nanobeir_revision: str | None = None
    max_corpus_documents: int | None = None


@dataclass(frozen=True)
class System:
    """A run, BM25, or a system of somebody else.

    Attributes:
        name: as it is shown; untrusted text.
        kind: where it comes from.
        stage: which of its figures are shown: `after`, `step 90`, `before`; empty where it has but one kind.
        figures: set or group (`NanoNQ`, `NanoBEIR_mean`) to plain name (`ndcg@10`, `corpus_active_dims`) to figure.
        per_query: figures of single queries, a task each.
        before: the figures before training, as `figures`.
        log: column of metrics.csv to its points: optimizer steps done, and the value.
        training_seconds: time of training, evaluation not included.
        emissions_g: g CO2eq of the whole run.
        evaluations: of a run, as far as its configuration tells.
        model: folder of its model, if there is one.
        search: cost of search, where it was measured.
        notes: what a reader must know of its figures, a sentence each.
    """

    name: str
    kind: Kind
    stage: str = ""
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    per_query: Sequence[QueryFigures] = ()
    before: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    log: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    training_seconds: float | None = None
    emissions_g: float | None = None
    evaluations: tuple[Evaluation, ...] = ()
    model: Path | None = None
    search: SearchCost | None = None
    notes: tuple[str, ...] = ()

    @property
    def sampled(self) -> bool:
        """Whether its log has figures of a sample of a corpus."""
        return any(one.max_corpus_documents is not None for one in self.evaluations)

    def figure(self, one: str, name: str) -> float | None:
        """A figure of a set, None if it is not known."""
        return self.figures.get(one, {}).get(name)


def figures_by_set(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Set to plain name to figure, from full names; `eval_`, which a trainer puts before them, is passed over.

    >>> figures_by_set({"eval_NanoNQ_dot_ndcg@10": 0.5, "eval_NanoNQ_corpus_active_dims": 60.0})
    {'NanoNQ': {'ndcg@10': 0.5, 'corpus_active_dims': 60.0}}
    """
    plain = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    return {
        one: {name.removeprefix("dot_"): value for name, value in figures.items()}
        for one, figures in by_set(plain).items()
    }


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
