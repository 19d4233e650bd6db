"""A model card as the text of its README.md: `templates/README.md.jinja`, filled from the card's record."""

import json
import re

import torch
from huggingface_hub import ModelCard
from jinja2 import Environment, PackageLoader, StrictUndefined

from splade_lit.card import markdown
from splade_lit.card.metadata import gpu_names, metadata
from splade_lit.card.record import Card, LogFacts
from splade_lit.core.progress import duration
from splade_lit.runs.stages import MAIN, by_set, published_name

_LOG_TITLES = {
    "train/loss": "Training Loss",
    "sparsity/train_document_active_dims": "Document Active Dims",
    "val/loss": "Validation Loss",
}
_STAGES = {"bm25": "BM25", "before": "before training", "after": "this model"}


def log_columns(log: LogFacts) -> dict[str, str]:
    """Columns of the log in the order of the card, with their titles: parts of the loss have titles of their own.

    >>> row = {"step": 1.0, "val/nq_dot_ndcg@10": 0.5, "train/lambda_d": 0.1, "train/ranking_loss": 0.2}
    >>> list(log_columns(LogFacts([row], 1.0, None)).values())
    ['lambda_d', 'Ranking Loss', 'nq_dot_ndcg@10']
    """
    found = dict.fromkeys(name for row in log.rows for name in row if name != "step")
    first = ["train/loss", *(name for name in found if name.startswith("train/")), *_LOG_TITLES]
    return {name: _log_title(name) for name in dict.fromkeys([*first, *found]) if name in found}


def _log_title(column: str) -> str:
    name = column.removeprefix("train/").removeprefix("val/")
    is_part = column.startswith("train/") and not name.startswith("lambda_")
    return _LOG_TITLES.get(column, name.replace("_", " ").title() if is_part else name)


_FILTERS = {
    **{name: getattr(markdown, name) for name in ("code", "code_cell", "figure", "listed", "millions", "setting")},
    "columns": log_columns,
    "duration": duration,
    "gpu_names": gpu_names,
    "json": json.dumps,
    "number": "{:,}".format,
    "published": published_name,
    "repr": repr,
    "tensor": torch.tensor,
}


def model_card(card: Card) -> str:
    """The text of a model card's README.md."""
    environment = Environment(
        loader=PackageLoader("splade_lit.card"),
        autoescape=True,
        finalize=lambda value: markdown.escaped(value) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= _FILTERS
    parts = card.training.parts if card.training else []
    measured = card.retrieval.stages if card.retrieval else {}
    after = by_set(measured.get("after", {}))
    body = environment.get_template("README.md.jinja").render(
        card=card,
        main=MAIN,
        after=after,
        sets={name: figures for name, figures in after.items() if not name.endswith("_mean")},
        means={name: figures for name, figures in after.items() if name.endswith("_mean")},
        stages={name: by_set(measured[stage]) for stage, name in _STAGES.items() if stage in measured},
        citations={one.title: one.bibtex for part in parts for one in part.citations},
    )
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    # Parsed once, so that what the Hub cannot read is never written.
    return str(ModelCard(f"---\n{metadata(card).to_yaml()}\n---\n\n{body}\n"))
