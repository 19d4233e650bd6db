"""What a training corpus decides before the first step: query weights and decoder bias."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import numpy as np

from splade_lit.core.ranges import check_range
from splade_lit.core.tokens import Tokens
from splade_lit.encoder.base import read_base
from splade_lit.encoder.body.packing import evaluation_mode
from splade_lit.encoder.grafted import START_ACTIVE_DIMS, calibrate_bias, start_warning
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query import idf_from_document_frequencies

CORPUS_IDF = "corpus"
SAMPLE_DOCUMENTS = 256  # training documents that the start is chosen by


@runtime_checkable
class TrainingCorpus(Protocol):
    """What is asked of a DataModule before training: `PairsDataModule` has it."""

    @property
    def num_documents(self) -> int:
        """Number of training documents."""

    def document_frequencies(self, vocab_size: int) -> np.ndarray:
        """Documents that hold each token, int64 `[vocab]`."""

    def sample_documents(self, num_documents: int, seed: int) -> Tokens:
        """Token ids of so many training documents."""


def untrained_encoder(settings: Mapping[str, Any]) -> AsymmetricSparseEncoder:
    """The encoder on the base model that the settings of a `SpladeModule` name; `set_start` comes next.

    Raises:
        UserError: the base model or the IDF table cannot be loaded, the decoder has no place for a start bias, or it
            has fewer dims than documents should start with.
    """
    names = signature(read_base).parameters
    chosen = {name: value for name, value in settings.items() if name in names}
    idf, revision = "ones" if settings["idf"] == CORPUS_IDF else settings["idf"], settings.get("base_revision")
    encoder = AsymmetricSparseEncoder.from_base(settings["base_model"], **chosen | {"idf": idf, "revision": revision})
    check_range("model", 1, encoder.vocab_size, start_active_dims=settings.get("start_active_dims"))
    if settings.get("start_active_dims") is not None or encoder.document.grafted:
        encoder.document.add_bias()
    return encoder


def set_start(
    encoder: AsymmetricSparseEncoder, corpus: TrainingCorpus, idf: str | None, active_dims: int | None
) -> str | None:
    """Set first query weights and decoder bias of an untrained encoder, in place; the same for the same corpus.

    With `idf` "corpus" the weights are the IDF of the training documents, else they stay. Documents start from
    `active_dims` on average; if not given, grafted heads from 200 and others as they are.

    Returns:
        One line of warning where documents start dense, dead or all alike, else None.
    """
    if idf == CORPUS_IDF:
        frequencies = corpus.document_frequencies(encoder.vocab_size)
        encoder.idf_weights.data.copy_(idf_from_document_frequencies(frequencies, corpus.num_documents))
    sample = corpus.sample_documents(SAMPLE_DOCUMENTS, seed=0)
    if active_dims is None and encoder.document.grafted:
        active_dims = START_ACTIVE_DIMS
    with evaluation_mode(encoder.document):
        if active_dims is None:
            return start_warning(encoder.document, sample)
        calibrate_bias(encoder.document, sample, active_dims)
    return None
