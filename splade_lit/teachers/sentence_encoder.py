"""A frozen sentence encoder, run by sentence-transformers: one dense vector a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from splade_lit.core.bm25 import BM25
from splade_lit.core.errors import UserError
from splade_lit.encoder.layout import model_folder, read_json
from splade_lit.teachers.kinds import load_teacher, teacher_kind

Side = Literal["query", "document"]

COSINE_SCALE = 20.0
"""Factor of a cosine that makes it a score: by which sentence-transformers' losses multiply cosines in training."""


class SentenceEncoder:
    """Vectors of queries and documents whose dot product is the model's similarity.

    Args:
        folder: the saved model.
        max_tokens: tokens a text is cut to; the model's own limit if not given, and never more than that.
        device: where it runs.
        half: number format of its matrix products, if not fp32.

    Raises:
        UserError: the model is no sentence encoder, cannot be read, or sentence-transformers is not installed.
    """

    def __init__(
        self,
        folder: Path,
        max_tokens: int | None = None,
        device: str | torch.device = "cpu",
        half: torch.dtype | None = None,
    ) -> None:
        check_sentence_encoder(folder, str(folder))
        self.is_cosine = compares_by_cosine(folder)
        self.model = load_teacher(folder, "sentence encoder", device)
        self.half = half
        if max_tokens is not None:
            self.model.max_seq_length = min(max_tokens, self.model.max_seq_length or max_tokens)

    def encode(self, texts: Sequence[str], side: Side) -> np.ndarray:
        """fp32 `[texts, dims]`; a model with prompts or routes for queries and documents uses them."""
        encode: Any = self.model.encode_query if side == "query" else self.model.encode_document
        with torch.autocast(self.model.device.type, self.half, enabled=self.half is not None):
            vectors = encode(list(texts), normalize_embeddings=self.is_cosine, show_progress_bar=False)
        return np.asarray(vectors, np.float32)


def compares_by_cosine(folder: Path) -> bool:
    """Whether a sentence encoder compares by cosine, as most do, so that its vectors are made of unit length here."""
    return read_json(folder / "config_sentence_transformers.json", missing={}).get("similarity_fn_name") != "dot"


def usual_scale(source: str) -> float:
    """Factor of a teacher's scores if none is given: 20 for a sentence encoder that compares by cosine, else 1."""
    if source == BM25:
        return 1.0
    folder = model_folder(source)
    return COSINE_SCALE if teacher_kind(folder, source) == "sentence encoder" and compares_by_cosine(folder) else 1.0


def check_sentence_encoder(folder: Path, source: str) -> None:
    """Raise a UserError, which calls the model `source`, if it is not a sentence encoder."""
    if (kind := teacher_kind(folder, source)) != "sentence encoder":
        raise UserError(
            f"{source} is a {kind}; a teacher whose vectors are made once is a sentence encoder, others score pairs by "
            "`python -m splade_lit.score`."
        )
