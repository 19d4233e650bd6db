"""Sections of a card on the run: data, settings, log, footprint. Without data a section is empty."""

import json
from collections.abc import Mapping
from typing import Any

from splade_lit.card.markdown import (
    bold,
    code_cell,
    escaped,
    fenced,
    folded,
    link_with_commit,
    listed,
    section,
    setting,
    table,
)
from splade_lit.card.metadata import gpu_names
from splade_lit.card.record import Card, LogFacts, PairsFacts, Training
from splade_lit.core.progress import duration

_UNFOLDED_ROWS = 30
_LOG_NAMES = {
    "train/loss": "Training Loss",
    "sparsity/train_document_active_dims": "Document Active Dims",
    "val/loss": "Validation Loss",
}


def dataset(card: Card, kind: str) -> str:
    """The pairs trained on (`Training`) or held out (`Evaluation`), with the loss."""
    if card.training is None:
        return ""
    facts = card.training.train if kind == "Training" else card.training.eval
    if facts is None:
        return ""
    config = f", configuration `{facts.config}`" if facts.config else ""
    lines = [
        f"* Dataset: {link_with_commit(facts.source, 'datasets/')}{config}",
        f"* Size: {facts.num_pairs:,} {kind.lower()} samples",
        f"* Columns: {listed(column.name for column in facts.columns)}",
        f"* Statistics of the first {facts.num_measured:,} samples, in tokens as the model reads them:",
    ]
    return section(
        3,
        f"{kind} Dataset",
        section(
            4,
            escaped(facts.source.name),
            "\n".join(lines),
            _statistics_table(facts),
            *(("* Samples:", _samples_table(facts)) if facts.samples else ()),
            f"* Loss: `SpladeLoss`, the weighted sum of {_terms(card.training)}, with these parameters:",
            fenced("json", json.dumps(card.training.loss, indent=2)),
        ),
    )


def _terms(training: Training) -> str:
    return ", ".join(f"`{part.name}` (`{part.tag}`)" for part in training.parts if part.tag)


def _statistics_table(facts: PairsFacts) -> str:
    details = [
        f"min: {column.min_tokens} tokens<br>mean: {column.mean_tokens:.2f} tokens<br>max: {column.max_tokens} tokens"
        for column in facts.columns
    ]
    header = ["", *(column.name for column in facts.columns)]
    return table(header, [["type", *["string"] * len(facts.columns)], ["details", *details]])


def _samples_table(facts: PairsFacts) -> str:
    header = [column.name for column in facts.columns]
    return table(header, [[code_cell(text) for text in sample] for sample in facts.samples])


def hyperparameters(card: Card) -> str:
    """Settings that differ from the defaults, and all of them, folded."""
    if card.training is None or not card.training.hyperparameters.all:
        return ""
    settings = card.training.hyperparameters

    def listed(values: Mapping[str, Any]) -> str:
        return "\n".join(f"- `{name}`: {setting(value)}" for name, value in values.items())

    return section(
        3,
        "Training Hyperparameters",
        section(4, "Non-Default Hyperparameters", listed(settings.non_default)),
        section(4, "All Hyperparameters", folded(listed(settings.all))),
    )


def logs(card: Card) -> str:
    """The log as a table, its best row bold; folded if it is long."""
    log = card.training.log if card.training else None
    if log is None:
        return ""
    columns = dict.fromkeys(name for row in log.rows for name in row if name != "step")
    first = ["train/loss", *(name for name in columns if name.startswith("train/")), *_LOG_NAMES]
    ordered = [name for name in dict.fromkeys([*first, *columns]) if name in columns]
    header = ["Epoch", "Step", *map(_log_title, ordered)]
    best = _best_row(log)
    rows = []
    for number, row in enumerate(log.rows):
        cells = [f"{row['step'] / log.steps_per_epoch:.4f}", f"{row['step']:.0f}"]
        cells += [f"{row[name]:.4g}" if name in row else "-" for name in ordered]
        rows.append(bold(cells) if number == best else cells)
    text = table(header, rows)
    note = ""
    if best is not None and log.main_metric:
        note = (
            f"* The bold row has the best {log.main_metric.removeprefix('val/')}; the model is that of the last step."
        )
    return section(3, "Training Logs", folded(text) if len(rows) > _UNFOLDED_ROWS else text, note)


def _log_title(column: str) -> str:
    """The name of a column of the log; parts of the loss have their own.

    >>> [_log_title(column) for column in ("train/ranking_loss", "train/lambda_d", "val/nq_dot_ndcg@10")]
    ['Ranking Loss', 'lambda_d', 'nq_dot_ndcg@10']
    """
    name = column.removeprefix("train/").removeprefix("val/")
    is_part = column.startswith("train/") and not name.startswith("lambda_")
    return _LOG_NAMES.get(column, name.replace("_", " ").title() if is_part else name)


def _best_row(log: LogFacts) -> int | None:
    if log.main_metric is None:
        return None
    with_metric = [number for number, row in enumerate(log.rows) if log.main_metric in row]
    return max(with_metric, key=lambda number: log.rows[number][log.main_metric or ""], default=None)


def environment(card: Card) -> str:
    """Energy and emissions by stage."""
    if card.footprint is None:
        return ""
    total = card.footprint.total
    rows = [
        [stage, f"{used.energy_kwh:.4g}", f"{1000 * used.emissions_kg:.4g}", f"{used.seconds / 3600:.4g}"]
        for stage, used in (*card.footprint.stages.items(), ("total", total))
    ]
    place = card.footprint.country or "the world on average"
    return section(
        3,
        "Environmental Impact",
        f"Measured with [CodeCarbon](https://github.com/mlco2/codecarbon), for the electricity of {place}.",
        "\n".join(
            [
                f"- **Energy Consumed**: {total.energy_kwh:.4g} kWh",
                f"- **Carbon Emitted**: {total.emissions_kg:.4g} kg of CO2",
                f"- **Hours Used**: {total.seconds / 3600:.4g} hours",
            ]
        ),
        table(["Stage", "Energy (kWh)", "Carbon (g of CO2)", "Hours"], rows),
    )


def hardware(card: Card) -> str:
    """The machine."""
    if card.training is None:
        return ""
    machine = card.training.hardware
    lines = [f"- **On Cloud**: {'Yes' if card.footprint.on_cloud else 'No'}"] if card.footprint else []
    lines.append(f"- **GPU Model**: {gpu_names(machine.gpus) if machine.gpus else 'No GPU used'}")
    if machine.cpu_model:
        lines.append(f"- **CPU Model**: {machine.cpu_model}")
    if machine.ram_gb:
        lines.append(f"- **RAM Size**: {machine.ram_gb:.2f} GB")
    return section(3, "Training Hardware", "\n".join(lines))


def times(card: Card) -> str:
    """Time by stage."""
    if card.training is None or not card.training.seconds:
        return ""
    stages = {**card.training.seconds, "total": sum(card.training.seconds.values())}
    return section(
        3, "Training Time", "\n".join(f"- **{stage.title()}**: {duration(time)}" for stage, time in stages.items())
    )


def versions(card: Card) -> str:
    """What the run used."""
    return section(
        3, "Framework Versions", "\n".join(f"- {name}: {version}" for name, version in card.versions.items())
    )
