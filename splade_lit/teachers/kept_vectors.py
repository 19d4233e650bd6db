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
        cache_dir: the cache; vectors are in its folder `teachers`, apart for each model and limit.
    """

    def __init__(self, folder: Path, max_tokens: int | None, device: str | torch.device, cache_dir: Path) -> None:
        self._folder, self._max_tokens, self._device = folder, max_tokens, device
        self._cache = cache_dir / "teachers" / f"{folder_fingerprint(folder)}-{max_tokens or 'all'}"

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The model, loaded when a vector is missing; a UserError as of `SentenceEncoder`."""
        return SentenceEncoder(self._folder, self._max_tokens, self._device)

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
