"""A model card as Markdown: a pure function of its record. A section whose data is absent is left out."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from huggingface_hub import ModelCard

from splade_lit.publish import citations
from splade_lit.publish.figures import MAIN, by_set
from splade_lit.publish.metadata import gpu_names, metadata
from splade_lit.publish.record import Card, LogFacts, PairsFacts, Source

_LONGEST_SAMPLE = 1000  # characters of a text in a table
_UNFOLDED_ROWS = 30
_UNKNOWN_ID = "path/to/model"
_LOG_NAMES = {
    "train/loss": "Training Loss",
    "train/ranking_loss": "Ranking Loss",
    "train/document_penalty": "Document Penalty",
    "train/lambda_d": "lambda_d",
    "sparsity/train_document_active_dims": "Document Active Dims",
    "val/loss": "Validation Loss",
}


def model_card(card: Card) -> str:
    """The text of a model card's README.md."""
    text = f"---\n{metadata(card).to_yaml()}\n---\n\n{_body(card)}\n"
    return str(ModelCard(text))  # parsed once, so that what the Hub cannot read is never written


def _body(card: Card) -> str:
    return _join(
        f"# {card.name}",
        _introduction(card),
        _section(2, "Model Details", _description(card), _sources(), _architecture(card)),
        _section(2, "Usage", _usage_sentence_transformers(card), _usage_splade_lit(card)),
        _section(2, "Evaluation", _metrics(card), _sparsity(card)),
        _section(
            2,
            "Training Details",
            _dataset(card, "Training"),
            _dataset(card, "Evaluation"),
            _hyperparameters(card),
            _logs(card),
            _environment(card),
            _hardware(card),
            _times(card),
            _versions(card),
        ),
        _section(2, "Citation", _citations(card)),
    )


def _introduction(card: Card) -> str:
    base, training = card.model.base, card.training
    made = f", finetuned from {_link(base, 'https://huggingface.co/')}" if base else ""
    if training:
        made += f"{' ' if base else ', trained '}on {_link(training.train.source, 'https://huggingface.co/datasets/')}"
    return (
        f"This is an inference-free SPLADE encoder{made} with splade_lit. It maps queries and documents to sparse "
        f"vectors of {card.model.dims} dimensions, one a vocabulary entry, for search with an inverted index. A "
        "document goes through a masked language model; a query is a lookup in a table of token weights, so that no "
        "neural network runs at query time."
    )


def _description(card: Card) -> str:
    model = card.model
    lines = ["- **Model Type:** Asymmetric Inference-free SPLADE Sparse Encoder"]
    if model.base:
        lines.append(f"- **Base Model:** {_link(model.base, 'https://huggingface.co/')}{_revision(model.base)}")
    lines += [
        f"- **Model Size:** {_millions(model.num_parameters)} parameters",
        f"- **Maximum Sequence Length:** {model.max_document_tokens} tokens",
        f"- **Maximum Query Length:** {model.max_query_tokens} tokens",
        f"- **Output Dimensionality:** {model.dims} dimensions"
        + (f", at most {model.max_active_dims} of them active" if model.max_active_dims else ""),
        "- **Similarity Function:** Dot Product",
    ]
    if card.training:
        source = card.training.train.source
        lines.append(f"- **Training Dataset:** {_link(source, 'https://huggingface.co/datasets/')}")
    if card.language:
        lines.append(f"- **Language:** {', '.join(card.language)}")
    if card.license:
        lines.append(f"- **License:** {card.license}")
    return _section(3, "Model Description", "\n".join(lines))


def _sources() -> str:
    return _section(
        3,
        "Model Sources",
        "\n".join(
            [
                "- **Format:** [sentence-transformers](https://sbert.net), whose releases from 5.0 on open this model",
                "- **Documentation:** [sparse encoders](https://www.sbert.net/docs/sparse_encoder/usage/usage.html)",
                "- **Hugging Face:** [models of this kind]"
                "(https://huggingface.co/models?library=sentence-transformers&other=sparse-encoder)",
            ]
        ),
    )


def _architecture(card: Card) -> str:
    model = card.model
    query = {"frozen": model.frozen_idf, "dims": model.dims, "max_tokens": model.max_query_tokens}
    document = {"max_tokens": model.max_document_tokens}
    pooling = {"pooling": model.pooling, "activation": model.activation, "dims": model.dims}
    lines = [
        "AsymmetricSparseEncoder(",
        f"  (query): IdfQueryEncoder({query}), tokenizer: {model.tokenizer_class}",
        f"  (document): MlmDocumentEncoder({document}), model: {model.document_class}, tokenizer: "
        f"{model.tokenizer_class}",
        f"    -> SPLADE pooling({pooling})",
        ")",
    ]
    return _section(3, "Full Model Architecture", _fenced("", "\n".join(lines)))


def _usage_sentence_transformers(card: Card) -> str:
    code = _usage_code(
        card,
        "from sentence_transformers import SparseEncoder",
        f"model = SparseEncoder({json.dumps(card.model_id or _UNKNOWN_ID)})",
    )
    return _section(
        3,
        "Direct Usage (Sentence Transformers)",
        _fenced("bash", "pip install -U sentence-transformers"),
        _fenced("python", code),
    )


def _usage_splade_lit(card: Card) -> str:
    code = _usage_code(
        card,
        "from splade_lit import AsymmetricSparseEncoder",
        f"model = AsymmetricSparseEncoder.load({json.dumps(card.model_id or _UNKNOWN_ID)})",
    )
    return _section(3, "Direct Usage (splade_lit)", _fenced("python", code))


def _usage_code(card: Card, first: str, load: str) -> str:
    example = card.example
    queries = [example.query] if example else ["how do magnets work"]
    documents = example.documents if example else ["Magnets attract iron.", "Rain falls from clouds."]
    lines = [first, "", f"{load}  # a folder, or an id on the Hub", "", "queries = ["]
    lines += [f"    {query!r}," for query in queries]
    lines += ["]", "documents = ["]
    lines += [f"    {document!r}," for document in documents]
    lines += [
        "]",
        "query_embeddings = model.encode_query(queries)",
        "document_embeddings = model.encode_document(documents)",
        "print(query_embeddings.shape, document_embeddings.shape)",
        f"# {torch.Size([len(queries), card.model.dims])} {torch.Size([len(documents), card.model.dims])}",
        "",
        "scores = model.similarity(query_embeddings, document_embeddings)",
        "print(scores)",
    ]
    if example:
        lines.append(f"# {torch.tensor([example.scores])}")
    return "\n".join(lines)


def _metrics(card: Card) -> str:
    if card.retrieval is None or not (after := by_set(card.retrieval.stages.get("after", {}))):
        return ""
    means = {name: figures for name, figures in after.items() if name.endswith("_mean")}
    sets = {name: figures for name, figures in after.items() if name not in means}
    parts = []
    if sets:
        parts.append(
            _section(
                4,
                "Sparse Information Retrieval",
                "\n".join([f"* {_plural('Dataset', sets)}: {_listed(sets)}", *_task_lines(card, sets)]),
                _figures_table(sets),
            )
        )
    for name, figures in means.items():
        members = [task.name for task in card.retrieval.tasks if f"{task.group}_mean" == name]
        lines = [f"* Dataset: `{name}`, the mean over {_listed(members)}"] if members else [f"* Dataset: `{name}`"]
        parts.append(_section(4, "Sparse Nano BEIR", *lines, _figures_table({"Value": figures})))
    parts.append(_stages_table(card))
    return _section(3, "Metrics", *parts)


def _task_lines(card: Card, sets: Iterable[str]) -> list[str]:
    assert card.retrieval is not None
    lines = [
        f"* `{task.name}`: {task.num_queries:,} queries, {task.num_documents:,} documents"
        + (", graded judgements (nDCG takes grades as gains)" if task.graded else "")
        for task in card.retrieval.tasks
        if task.name in sets
    ]
    return [*lines, "* Exact search over the whole corpus; ties are broken by document id"]


def _figures_table(sets: Mapping[str, Mapping[str, float]]) -> str:
    metrics = dict.fromkeys(metric for figures in sets.values() for metric in figures)
    rows = [
        [metric, *(_figure(figures[metric]) if metric in figures else "-" for figures in sets.values())]
        for metric in metrics
    ]
    return _table(["Metric", *sets], [_bold(row) if row[0] == MAIN else row for row in rows])


def _stages_table(card: Card) -> str:
    """nDCG@10 of the model beside BM25 and beside itself before training, where these were measured."""
    assert card.retrieval is not None
    names = {"bm25": "BM25", "before": "before training", "after": "this model"}
    stages = {stage: by_set(card.retrieval.stages[stage]) for stage in names if stage in card.retrieval.stages}
    if len(stages) < 2:
        return ""
    sets = list(stages["after"])
    rows = [
        [names[stage], *(_figure(figures[one][MAIN]) if one in figures else "-" for one in sets)]
        for stage, figures in stages.items()
    ]
    return _section(4, f"{MAIN} in Comparison", _table(["Stage", *sets], [*rows[:-1], _bold(rows[-1])]))


def _sparsity(card: Card) -> str:
    facts = card.sparsity
    if facts is None:
        return ""
    frequent = ", ".join(f"{_code(token)} {share:.0%}" for token, share in facts.most_frequent[:10])
    lines = [
        f"Of {facts.num_documents:,} training documents:",
        "",
        f"- **Active Dims of a Document:** mean {_figure(facts.active_dims)}, median {facts.active_dims_median}, "
        f"95th percentile {facts.active_dims_p95}",
        f"- **Dims active in none of them:** {facts.dead_dims_ratio:.1%} of the vocabulary",
    ]
    if frequent:
        lines.append(f"- **Most frequent Dims:** {frequent}")
    return _section(3, "Sparsity", "\n".join(lines))


def _dataset(card: Card, kind: str) -> str:
    if card.training is None:
        return ""
    facts = card.training.train if kind == "Training" else card.training.eval
    if facts is None:
        return ""
    source = facts.source
    revision = ""
    if source.hub_id and source.revision:
        tree = f"https://huggingface.co/datasets/{source.hub_id}/tree/{source.revision}"
        revision = f" at [{source.revision[:7]}]({tree})"
    config = f", configuration `{facts.config}`" if facts.config else ""
    lines = [
        f"* Dataset: {_link(source, 'https://huggingface.co/datasets/')}{revision}{config}",
        f"* Size: {facts.num_pairs:,} {kind.lower()} samples",
        f"* Columns: {_listed(column.name for column in facts.columns)}",
        f"* Statistics of the first {facts.num_measured:,} samples, in tokens as the model reads them:",
    ]
    return _section(
        3,
        f"{kind} Dataset",
        _section(
            4,
            source.name,
            "\n".join(lines),
            _statistics_table(facts),
            "* Samples:",
            _samples_table(facts),
            "* Loss: `SpladeLoss`: an in-batch ranking loss (`SparseMultipleNegativesRankingLoss`, dot products, "
            "scale 1) and weighted penalties on activations, with these parameters:",
            _fenced("json", json.dumps(card.training.loss, indent=2)),
        ),
    )


def _statistics_table(facts: PairsFacts) -> str:
    details = [
        f"min: {column.min_tokens} tokens<br>mean: {column.mean_tokens:.2f} tokens<br>max: {column.max_tokens} tokens"
        for column in facts.columns
    ]
    header = ["", *(column.name for column in facts.columns)]
    return _table(header, [["type", *["string"] * len(facts.columns)], ["details", *details]])


def _samples_table(facts: PairsFacts) -> str:
    header = [column.name for column in facts.columns]
    return _table(header, [[_code(text) for text in sample] for sample in facts.samples])


def _hyperparameters(card: Card) -> str:
    if card.training is None or not card.training.hyperparameters.all:
        return ""
    settings = card.training.hyperparameters

    def listed(values: Mapping[str, Any]) -> str:
        return "\n".join(f"- `{name}`: {_setting(value)}" for name, value in values.items())

    return _section(
        3,
        "Training Hyperparameters",
        _section(4, "Non-Default Hyperparameters", listed(settings.non_default)),
        _section(4, "All Hyperparameters", _folded(listed(settings.all))),
    )


def _logs(card: Card) -> str:
    log = card.training.log if card.training else None
    if log is None:
        return ""
    columns = dict.fromkeys(name for row in log.rows for name in row if name != "step")
    ordered = [name for name in _LOG_NAMES if name in columns] + [name for name in columns if name not in _LOG_NAMES]
    header = ["Epoch", "Step", *(_LOG_NAMES.get(name, name.removeprefix("val/")) for name in ordered)]
    best = _best_row(log)
    rows = []
    for number, row in enumerate(log.rows):
        cells = [f"{row['step'] / log.steps_per_epoch:.4f}", f"{row['step']:.0f}"]
        cells += [f"{row[name]:.4g}" if name in row else "-" for name in ordered]
        rows.append(_bold(cells) if number == best else cells)
    table = _table(header, rows)
    note = ""
    if best is not None and log.main_metric:
        note = (
            f"* The bold row has the best {log.main_metric.removeprefix('val/')}; the model is that of the last step."
        )
    return _section(3, "Training Logs", _folded(table) if len(rows) > _UNFOLDED_ROWS else table, note)


def _best_row(log: LogFacts) -> int | None:
    if log.main_metric is None:
        return None
    with_metric = [number for number, row in enumerate(log.rows) if log.main_metric in row]
    return max(with_metric, key=lambda number: log.rows[number][log.main_metric or ""], default=None)


def _environment(card: Card) -> str:
    if card.footprint is None:
        return ""
    total = card.footprint.total
    rows = [
        [stage, f"{used.energy_kwh:.4g}", f"{1000 * used.emissions_kg:.4g}", f"{used.seconds / 3600:.4g}"]
        for stage, used in (*card.footprint.stages.items(), ("total", total))
    ]
    where = f"the electricity of {card.footprint.country}" if card.footprint.country else "the world's average"
    return _section(
        3,
        "Environmental Impact",
        f"Measured with [CodeCarbon](https://github.com/mlco2/codecarbon), for {where}.",
        "\n".join(
            [
                f"- **Energy Consumed**: {total.energy_kwh:.4g} kWh",
                f"- **Carbon Emitted**: {total.emissions_kg:.4g} kg of CO2",
                f"- **Hours Used**: {total.seconds / 3600:.4g} hours",
            ]
        ),
        _table(["Stage", "Energy (kWh)", "Carbon (g of CO2)", "Hours"], rows),
    )


def _hardware(card: Card) -> str:
    if card.training is None:
        return ""
    machine = card.training.hardware
    lines = [f"- **On Cloud**: {'Yes' if card.footprint.on_cloud else 'No'}"] if card.footprint else []
    lines.append(f"- **GPU Model**: {gpu_names(machine.gpus) if machine.gpus else 'No GPU used'}")
    if machine.cpu_model:
        lines.append(f"- **CPU Model**: {machine.cpu_model}")
    if machine.ram_gb:
        lines.append(f"- **RAM Size**: {machine.ram_gb:.2f} GB")
    return _section(3, "Training Hardware", "\n".join(lines))


def _times(card: Card) -> str:
    if card.training is None or not card.training.seconds:
        return ""
    stages = {**card.training.seconds, "total": sum(card.training.seconds.values())}
    return _section(
        3, "Training Time", "\n".join(f"- **{stage.title()}**: {_time(time)}" for stage, time in stages.items())
    )


def _versions(card: Card) -> str:
    return _section(
        3, "Framework Versions", "\n".join(f"- {name}: {version}" for name, version in card.versions.items())
    )


def _citations(card: Card) -> str:
    loss = card.training.loss if card.training else {}
    entries = {
        "SPLADE": citations.SPLADE,
        "Inference-free Retrieval": citations.INFERENCE_FREE,
        "Ranking Loss": citations.RANKING if card.training else "",
        "FLOPS Penalty": citations.FLOPS if loss.get("penalty") == "flops" else "",
        "l0 Mask": citations.L0_MASK if loss.get("l0_threshold") is not None else "",
        "Sentence Transformers": citations.SENTENCE_TRANSFORMERS,
    }
    return _section(
        3, "BibTeX", *(_section(4, name, _fenced("bibtex", entry)) for name, entry in entries.items() if entry)
    )


def _section(level: int, title: str, *parts: str) -> str:
    """A heading with its parts; nothing if they are all empty."""
    return _join(f"{'#' * level} {title}", *parts) if any(parts) else ""


def _join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _folded(text: str) -> str:
    return f"<details><summary>Click to expand</summary>\n\n{text}\n\n</details>" if text else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, [":---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bold(cells: Sequence[str]) -> list[str]:
    return [cell if cell == "-" else f"**{cell}**" for cell in cells]


def _code(text: str) -> str:
    """A text in a cell of a table, as it is."""
    text = text if len(text) <= _LONGEST_SAMPLE else f"{text[:_LONGEST_SAMPLE]}..."
    # Inside <code> Markdown still counts; entities keep its characters as they are.
    plain = html.escape(text, quote=False)
    for character in "\\`*_[]|~$":
        plain = plain.replace(character, f"&#{ord(character)};")
    return f"<code>{'<br>'.join(plain.splitlines())}</code>"


def _link(source: Source, site: str) -> str:
    return f"[{source.name}]({site}{source.hub_id})" if source.hub_id else f"`{source.name}`"


def _revision(source: Source) -> str:
    if not (source.hub_id and source.revision):
        return ""
    return f" at [{source.revision[:7]}](https://huggingface.co/{source.hub_id}/tree/{source.revision})"


def _listed(names: Iterable[str]) -> str:
    """Names in one phrase.

    >>> _listed(["a", "b", "c"])
    '`a`, `b` and `c`'
    """
    *first, last = [f"`{name}`" for name in names]
    return f"{', '.join(first)} and {last}" if first else last


def _plural(word: str, things: Iterable[Any]) -> str:
    return f"{word}s" if len(list(things)) > 1 else word


def _figure(value: float) -> str:
    """Four decimals, without closing zeros.

    >>> _figure(0.32), _figure(55.45885), _figure(0.0)
    ('0.32', '55.4589', '0')
    """
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _setting(value: Any) -> str:
    """A setting as YAML writes it; long fractions are cut.

    >>> _setting(None), _setting(True), _setting(2e-05), _setting([])
    ('null', 'true', '2e-05', '[]')
    """
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _millions(number: int) -> str:
    """A count of weights.

    >>> _millions(22_713_216), _millions(9_730)
    ('22.7M', '9,730')
    """
    return f"{number / 1e6:.1f}M" if number >= 1e6 else f"{number:,}"


def _time(seconds: float) -> str:
    """A time for a person.

    >>> _time(12.34), _time(150), _time(7200)
    ('12.3 seconds', '2.5 minutes', '2.0 hours')
    """
    if seconds < 60:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"
