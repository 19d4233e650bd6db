"""Vectors of a sentence encoder that are made once and kept in the cache, whoever asks for them."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from splade_lit.encoder.layout import folder_fingerprint
from splade_lit.teachers.sentence_encoder import SentenceEncoder, Side
from splade_lit.teachers.vectors import TextVectors, add_vectors, open_vectors


class KeptVectors:
    """A sentence encoder and the vectors that it has made.

    Args:
        folder: the saved model.
        max_tokens: tokens a text is cut to; the model's own limit if not given.
        device: where it runs.
        cache_dir: the cache; vectors are in its folder `teachers`, apart for each model, limit and number format.
        half: number format of the model's matrix products, if not fp32; vectors are kept as they always are.
    """

    def __init__(
        self,
        folder: Path,
        max_tokens: int | None,
        device: str | torch.device,
        cache_dir: Path,
        half: torch.dtype | None = None,
    ) -> None:
        self._settings = folder, max_tokens, device, half
        name = f"{folder_fingerprint(folder)}-{max_tokens or 'all'}"
        self._cache = cache_dir / "teachers" / (name if half is None else f"{name}-{str(half).removeprefix('torch.')}")

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The model, loaded when a vector is missing; a UserError as of `SentenceEncoder`."""
        return SentenceEncoder(*self._settings)

    def of(
        self,
        side: Side,
        hashes: np.ndarray,
        lengths: np.ndarray,
        texts: Callable[[np.ndarray], list[str]],
        verb: str,
    ) -> TextVectors:
        """The vectors of distinct texts and of all that were made before; the arguments are those of `add_vectors`."""
        place = self._cache / side
        encode = lambda batch: self.encoder.encode(batch, side)  # noqa: E731
        return add_vectors(open_vectors(place), hashes, lengths, texts, encode, place, verb)
