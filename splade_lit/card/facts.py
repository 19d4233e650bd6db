"""Gathering what a model card tells: from the model, its data, the settings, the log and the machine."""

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import try_to_load_from_cache

from splade_lit.card.record import ColumnFacts, Example, Hyperparameters, LogFacts, ModelFacts, PairsFacts, Source
from splade_lit.core.sources import PACKAGE_PREFIX, resolve_source
from splade_lit.data.irds import is_irds
from splade_lit.data.pairs import Pairs
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.pruning import Pruning
from splade_lit.runs.log import Log

_MEASURED = 1000
_SAMPLES = 3
_LONGEST_EXAMPLE = 1000  # characters, where there is a choice
_LOG_ROWS = 100
# Settings of the machine or of the run's surroundings, not of what is learned.
_NOT_HYPERPARAMETERS = ("trainer.callbacks", "trainer.logger", "trainer.default_root_dir", "data.cache_dir")


def model_facts(encoder: AsymmetricSparseEncoder, base: Source | None = None) -> ModelFacts:
    """What an encoder is, and what it was trained from, if known."""
    return ModelFacts(
        base=base,
        num_parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        document_class=type(encoder.document.model).__name__,
        tokenizer_class=type(encoder.tokenizer).__name__,
        dims=encoder.vocab_size,
        max_query_tokens=encoder.max_query_tokens,
        max_document_tokens=encoder.max_document_tokens,
        pooling=encoder.document.pooling,
        activation=encoder.document.activation,
        frozen_idf=encoder.query.frozen,
        max_active_dims=encoder.max_active_dims,
        documents_keep=_documents_keep(encoder.pruning),
    )


def pruned_facts(model: ModelFacts, pruning: Pruning) -> ModelFacts:
    """What a model is whose limits have become these."""
    return replace(model, max_active_dims=pruning.max_active_dims, documents_keep=_documents_keep(pruning))


def _documents_keep(pruning: Pruning) -> str | None:
    told = pruning == Pruning().capped(pruning.max_active_dims) or pruning.of_documents == Pruning()
    return None if told else pruning.documents_keep


def base_source(source: str, revision: str | None = None) -> Source:
    """Where a base model that has been loaded comes from, without paths of this machine.

    The arguments are those of `AsymmetricSparseEncoder.from_base`.
    """
    if source.startswith(PACKAGE_PREFIX):
        return Source(source.removeprefix(PACKAGE_PREFIX).partition("/")[0])
    if (folder := Path(resolve_source(source))).exists():
        return Source(folder.resolve().name)
    names = ("config.json", "modules.json")  # of a plain model, of a saved one
    found = [try_to_load_from_cache(source, name, revision=revision) for name in names]
    commit = next((Path(path).parent.name for path in found if isinstance(path, str)), None)
    return Source(source, source, commit)


def pairs_source(pairs: Pairs) -> Source:
    """Where pairs come from, without paths of this machine."""
    if pairs.commit is not None:
        return Source(pairs.source.rpartition("/")[2], pairs.source, pairs.commit)
    return Source(pairs.source if is_irds(pairs.source) else Path(pairs.source).name)


def pairs_facts(
    pairs: Pairs, encoder: AsymmetricSparseEncoder, columns: Sequence[str] | None = None, sample_texts: bool = True
) -> PairsFacts | None:
    """Size, tokens and samples of pairs; None if there are none. `columns` are their names in the data set."""
    if not len(pairs):
        return None
    first = pairs.select(range(min(_MEASURED, len(pairs))))

    def column_facts(name: str, column: str) -> ColumnFacts:
        texts = [text for batch in first.batches(column) for text in batch if text] or [""]
        if column == "query":
            lengths = encoder.tokenisation.query_lengths(texts)
        else:
            lengths = [len(ids) for ids in encoder.tokenisation.documents(texts)]
        return ColumnFacts(name, min(lengths), float(np.mean(lengths)), max(lengths))

    return PairsFacts(
        source=pairs_source(pairs),
        config=pairs.config,
        num_pairs=len(pairs),
        num_measured=len(first),
        columns=[column_facts(*names) for names in zip(columns or pairs.columns, pairs.columns, strict=True)],
        samples=[list(pairs[row].values()) for row in range(min(_SAMPLES, len(pairs)) if sample_texts else 0)],
    )


def example(encoder: AsymmetricSparseEncoder, pairs: Pairs, seed: int = 0) -> Example | None:
    """A query drawn by chance, its document and those of two other pairs, scored; short texts are preferred."""
    drawn = _draw(pairs, seed)
    if not drawn:
        return None
    documents = list(dict.fromkeys(row["document"] for row in drawn))[:3]
    query = drawn[0]["query"]
    scores = encoder.similarity(encoder.encode_query([query]), encoder.encode_document(documents))
    return Example(query, documents, scores[0].tolist())


def widget_texts(pairs: Pairs, seed: int = 0, num_texts: int = 5) -> list[str]:
    """Documents and queries in turn, drawn by chance; other ones than `example` draws where there are enough."""
    rows = _draw(pairs, seed)[3:] or _draw(pairs, seed)
    return [row[column] for row, column in zip(rows[:num_texts], cycle(("document", "query")), strict=False)]


def _draw(pairs: Pairs, seed: int, num_pairs: int = 50) -> list[dict[str, str]]:
    rng = np.random.default_rng(seed)
    drawn = [pairs[int(row)] for row in rng.permutation(len(pairs))[:num_pairs]]
    return sorted(drawn, key=lambda row: max(len(row["query"]), len(row["document"])) > _LONGEST_EXAMPLE)


def hyperparameters(settings: Mapping[str, Any], classes: Mapping[str, type]) -> Hyperparameters:
    """Settings by dotted name, those of the machine left out and paths cut to their last part.

    Args:
        settings: the resolved configuration: groups of settings, and settings without a group.
        classes: group to the class that its settings are arguments of.
    """
    values = {f"{group}.{name}": value for group in classes for name, value in settings.get(group, {}).items()}
    values |= {name: settings[name] for name in ("seed_everything",) if name in settings}
    defaults = {
        f"{group}.{one.name}": one.default
        for group, kind in classes.items()
        for one in inspect.signature(kind).parameters.values()
    }
    shown = {name: _shown(value) for name, value in values.items() if name not in _NOT_HYPERPARAMETERS}
    changed = [name for name in shown if name not in defaults or _plain(values[name]) != _plain(defaults[name])]
    return Hyperparameters(shown, {name: shown[name] for name in changed})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _shown(value: Any) -> Any:
    if isinstance(value, str) and "/" in value and os.path.exists(os.path.expanduser(value)):
        return Path(value).name
    return _plain(value) if isinstance(value, list | tuple | dict | str | int | float | None) else str(value)


def log_facts(
    log: Log, steps_per_epoch: float, parts: Sequence[str], tasks: Sequence[str], main_metric: str | None
) -> LogFacts | None:
    """What a card shows of the log of a run; None if there is nothing.

    Args:
        log: of the run.
        steps_per_epoch: optimizer steps of an epoch.
        parts: names of the parts of the loss.
        tasks: retrieval sets and groups whose nDCG@10 is shown.
        main_metric: full name of the figure that tells which row is best.
    """
    shown = [
        "train/loss",
        *(f"train/{part}" for part in parts),
        "sparsity/train_document_active_dims",
        "val/loss",
        *(f"val/{task}_dot_ndcg@10" for task in tasks),
    ]
    rows = [
        {"step": float(step)} | {name: row[name] for name in shown if name in row}
        for step, row in log.items()
        if not row.keys().isdisjoint(shown)
    ]
    if not rows:
        return None
    plain = [number for number, row in enumerate(rows) if not any(name.startswith("val/") for name in row)]
    kept = {plain[i] for i in np.linspace(0, len(plain) - 1, min(_LOG_ROWS, len(plain))).round().astype(int)}
    rows = [row for number, row in enumerate(rows) if number in kept or number not in plain]
    main = f"val/{main_metric}"
    return LogFacts(rows, steps_per_epoch, main if any(main in row for row in rows) else None)
