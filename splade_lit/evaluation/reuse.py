"""Figures that the next run would measure again, such as those of its base model: kept in the cache."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import xxhash

import splade_lit
from splade_lit.core.distributed import from_first, rank
from splade_lit.core.errors import UserError
from splade_lit.core.files import replace_text
from splade_lit.core.text import parse_json
from splade_lit.data.tasks import RetrievalTask
from splade_lit.data.token_store import tokenizer_fingerprint
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.evaluation.per_query import QueryFigures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageFigures:
    """The figures of a stage of a run: means by full name, as `flat_metrics` gives them, and those of each query."""

    figures: dict[str, float]
    per_query: list[QueryFigures]


def reused(
    folder: Path | None, stage: str, fingerprint: Callable[[], str], measure: Callable[[], StageFigures]
) -> StageFigures:
    """Figures from the cache, or measured and put there.

    Where a run has several processes, all must call this; rank 0 reads and writes.

    Args:
        folder: of the cache; none is used if None.
        stage: name of what is measured.
        fingerprint: gives a hash of all that the figures depend on.
        measure: measures them.
    """
    if folder is None:
        return measure()
    path = from_first(lambda: folder / "figures" / f"{stage}-{fingerprint()}.json")
    if (kept := from_first(lambda: _read(path))) is not None:
        logger.info("%s: figures of an earlier run are reused, as nothing that they depend on has changed", stage)
        return kept
    measured = measure()
    if rank() == 0:
        with suppress(UserError):  # a cache that cannot be written costs time, and nothing else
            replace_text(path, json.dumps(asdict(measured)))
    return measured


def task_fingerprint(tasks: Sequence[RetrievalTask], encoder: AsymmetricSparseEncoder) -> str:
    """A hash of what BM25's figures depend on: the tasks, the tokenizer, and the code that measures."""
    state = xxhash.xxh3_128(json.dumps([asdict(task) for task in tasks]).encode())
    for path in sorted(Path(splade_lit.__file__).parent.rglob("*.py")):
        state.update(path.read_bytes())
    versions = [version(name) for name in ("torch", "transformers", "tokenizers", "scipy", "bm25s", "ir-measures")]
    state.update(" ".join([tokenizer_fingerprint(encoder.tokenizer), *versions]).encode())
    return state.hexdigest()


def model_fingerprint(tasks: Sequence[RetrievalTask], encoder: AsymmetricSparseEncoder) -> str:
    """A hash of what a model's figures depend on: all weights and settings too, and the kind of device."""
    document, body = encoder.document, encoder.document.model
    settings = {
        "limits": [encoder.max_query_tokens, encoder.max_document_tokens, asdict(encoder.pruning)],
        "prompts": encoder.prompts,
        "document": [document.pooling, document.activation, document.packed, document.padding_id],
        "body": [type(body).__name__, body.config.to_dict()],
        "device": [encoder.device.type, torch.get_float32_matmul_precision()],
    }
    state = xxhash.xxh3_128(task_fingerprint(tasks, encoder).encode())
    state.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in encoder.state_dict().items():
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def _read(path: Path) -> StageFigures | None:
    """The figures of a file of the cache, None if it is not there or damaged."""
    try:
        kept = parse_json(path.read_text(encoding="utf-8"))
        return StageFigures(kept["figures"], [QueryFigures(**one) for one in kept["per_query"]])
    except (OSError, ValueError, TypeError, KeyError):
        return None
