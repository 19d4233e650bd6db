"""What a model card tells, as data: gathered at the end of a run and kept beside the model as `card.json`."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from splade_lit.core.errors import UserError
from splade_lit.core.files import replace_text
from splade_lit.core.text import parse_json
from splade_lit.losses.citation import PartFacts
from splade_lit.runs.emissions import Footprint
from splade_lit.runs.machine import Hardware
from splade_lit.runs.run import CARD_JSON

README = "README.md"
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Where a base model or data set comes from.

    Attributes:
        name: what people call it.
        hub_id: its id on the Hub, if it comes from there.
        revision: the commit, if known.
    """

    name: str
    hub_id: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What the model is.

    Attributes:
        base: the model that training started from, if known.
        num_parameters: weights of the document encoder and of the query table.
        document_class: of transformers.
        dims: size of a vector.
        max_document_tokens: tokens a document is cut to, special tokens included.
        frozen_idf: whether the query weights were kept as they started.
        max_active_dims: how many weights are kept of a vector, of a query or a document alike; all if None.
        documents_keep: which weights of a document are kept, in words, where there is more to say.
    """

    base: Source | None
    num_parameters: int
    document_class: str
    tokenizer_class: str
    dims: int
    max_query_tokens: int
    max_document_tokens: int
    pooling: str
    activation: str
    frozen_idf: bool
    max_active_dims: int | None = None
    documents_keep: str | None = None


@dataclass(frozen=True)
class Example:
    """A query with documents, the first of which answers it, and the model's scores."""

    query: str
    documents: list[str]
    scores: list[float]


@dataclass(frozen=True)
class ColumnFacts:
    """Tokens that the model reads of the texts of a column: cut to its limit, special tokens included."""

    name: str
    min_tokens: int
    mean_tokens: float
    max_tokens: int


@dataclass(frozen=True)
class PairsFacts:
    """Pairs of text.

    Attributes:
        config: configuration of the data set, if it has several.
        num_measured: how many pairs, from the first on, the columns' figures are of.
        samples: the first pairs, a text a column; none where the card is to quote no texts.
    """

    source: Source
    config: str | None
    num_pairs: int
    num_measured: int
    columns: list[ColumnFacts]
    samples: list[list[str]]


@dataclass(frozen=True)
class TaskFacts:
    """A retrieval set that the model was evaluated on."""

    name: str
    group: str | None
    num_queries: int
    num_documents: int
    graded: bool


@dataclass(frozen=True)
class Retrieval:
    """What was measured: `stages` is metrics.json, stage to figures by full name."""

    tasks: list[TaskFacts]
    stages: dict[str, dict[str, float]]


@dataclass(frozen=True)
class SparsityFacts:
    """The last report of the sparsity monitor: a line of sparsity.jsonl without its histogram."""

    num_documents: int
    active_dims: float
    active_dims_median: int
    active_dims_p95: int
    dead_dims_ratio: float
    most_frequent: list[tuple[str, float]]


@dataclass(frozen=True)
class PrunedTask:
    """nDCG@10 and mean active dims of a document on a task, with whole vectors and with what is kept of them."""

    name: str
    whole_ndcg: float
    ndcg: float
    whole_active_dims: float
    active_dims: float


@dataclass(frozen=True)
class Hyperparameters:
    """Settings by dotted name: all of them, and those that differ from the defaults."""

    all: dict[str, Any]
    non_default: dict[str, Any]


@dataclass(frozen=True)
class LogFacts:
    """Rows of metrics.csv: column to figure, and `step`, the optimizer steps done.

    Attributes:
        rows: a choice of the rows where there are many; those with an evaluation are all there.
        steps_per_epoch: optimizer steps of an epoch.
        main_metric: column of the figure that tells which row is best, if there is one.
    """

    rows: list[dict[str, float]]
    steps_per_epoch: float
    main_metric: str | None

    @property
    def best_row(self) -> dict[str, float] | None:
        """The row with the best main figure; None if no row has one."""
        main = self.main_metric or ""
        return max((row for row in self.rows if main in row), key=lambda row: row[main], default=None)


@dataclass(frozen=True)
class Training:
    """A run.

    Attributes:
        train: pairs trained on.
        eval: pairs held out, if any.
        loss: settings of the loss, and `parts` what it was made of.
        seconds: time by stage, `training` and `evaluation`.
    """

    train: PairsFacts
    eval: PairsFacts | None
    loss: dict[str, Any]
    hyperparameters: Hyperparameters
    log: LogFacts | None
    seconds: dict[str, float]
    hardware: Hardware
    parts: list[PartFacts] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """All that a model card tells; what is None or empty has no section.

    Attributes:
        name: title of the card.
        model_id: id on the Hub that the examples load the model by.
        license: of the model, by the Hub's short name.
        language: codes of ISO 639-1.
        widget: texts to try the model with.
        sparsity: of a sample of training documents.
        pruned: tasks on which limits of documents were chosen after training; None where none were.
        footprint: energy and emissions of the run.
        versions: name to version of what the run used.
    """

    name: str
    model: ModelFacts
    model_id: str | None = None
    license: str | None = "apache-2.0"
    language: list[str] = field(default_factory=lambda: ["en"])
    example: Example | None = None
    widget: list[str] = field(default_factory=list)
    training: Training | None = None
    retrieval: Retrieval | None = None
    sparsity: SparsityFacts | None = None
    pruned: list[PrunedTask] | None = None
    footprint: Footprint | None = None
    versions: dict[str, str] = field(default_factory=dict)


def write_record(card: Card, folder: str | Path) -> None:
    """Write `card.json` to the folder of a model.

    Raises:
        UserError: it cannot be written.
    """
    text = json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n"
    replace_text(Path(folder) / CARD_JSON, text)


def read_record(folder: str | Path) -> Card | None:
    """The record in the folder of a model; None if there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / CARD_JSON
    if not path.is_file():
        return None
    try:
        return _with_parts(from_plain(Card, parse_json(path.read_text(encoding="utf-8"))))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise UserError(f"{path} is not a card's record ({reason}); delete it to go without.") from error


def _with_parts(card: Card) -> Card:
    """A card of when the loss had no parts that were recorded; its settings say what they were."""
    if card.training is None or card.training.parts:
        return card
    from splade_lit.losses.objective import Objective

    return replace(card, training=replace(card.training, parts=Objective(**card.training.loss).facts()))


def from_plain(kind: type[T], value: Any) -> T:
    """A dataclass from what `json` gives for its `asdict`; unknown names are passed over.

    >>> from_plain(Example, {"query": "a", "documents": ["b"], "scores": [1.0], "new": 1})
    Example(query='a', documents=['b'], scores=[1.0])
    """
    return TypeAdapter(kind).validate_python(value)
