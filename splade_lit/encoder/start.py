"""What a training corpus decides before the first step: query weights and decoder bias."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch

from splade_lit.core.errors import UserError
from splade_lit.core.ranges import check_range
from splade_lit.core.tokens import Tokens
from splade_lit.encoder.base import read_base
from splade_lit.encoder.body.packing import evaluation_mode
from splade_lit.encoder.condition import Bounds, Condition, Problem, dense_dims
from splade_lit.encoder.grafted import DOCUMENTS_AT_A_TIME, START_ACTIVE_DIMS, calibrate_bias
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query import idf_from_document_frequencies

CORPUS_IDF = "corpus"
AUTO = "auto"
_START_OF_TARGET, _NEAR_TARGET = 1.3, 0.95
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
        UserError: the base model or the IDF table cannot be loaded or is not finite, the decoder has no place for a
            start bias, or it has fewer dims than documents should start with.
    """
    names = signature(read_base).parameters
    chosen = {name: value for name, value in settings.items() if name in names}
    idf, revision = "ones" if settings["idf"] == CORPUS_IDF else settings["idf"], settings.get("base_revision")
    encoder = AsymmetricSparseEncoder.from_base(settings["base_model"], **chosen | {"idf": idf, "revision": revision})
    _check_finite(encoder, settings["base_model"])
    active_dims = settings.get("start_active_dims")
    check_range("model", 1, encoder.vocab_size, start_active_dims=None if active_dims == AUTO else active_dims)
    if active_dims is not None or encoder.document.grafted:
        encoder.document.add_bias()
    return encoder


@dataclass(frozen=True)
class Start:
    """How documents of the training corpus start.

    Attributes:
        condition: figures of a sample of them.
        remedied: figures of before the decoder bias was set, where it was set because of them.
        set_dims: active dims that the decoder bias was set for, if it was.
    """

    condition: Condition
    remedied: Condition | None = None
    set_dims: int | None = None

    def __str__(self) -> str:
        """One line with the figures."""
        line = "documents start with %.1f active dims on average, mean cosine similarity %.3f"
        start = line % (self.condition.active_dims, self.condition.similarity)
        if self.remedied is None:
            return start
        before = self.remedied.active_dims, self.remedied.similarity
        return f"{start}, as the decoder bias was set; without, %.1f and %.3f" % before

    def warning(self, vocab_size: int, target_active_dims: int | None = None) -> str | None:
        """One line that says what is wrong with them and what to do, or None.

        A target that they start below is wrong too, by more than the error of measuring a sample.
        """
        active_dims = self.condition.active_dims
        problem = Bounds(dense_dims(vocab_size, target_active_dims)).problem(self.condition)
        if problem is None:
            if target_active_dims is None or active_dims >= _NEAR_TARGET * target_active_dims:
                return None
            start = min(start_of_target(target_active_dims), vocab_size)
            return (
                f"documents start with {active_dims:.1f} active dims, fewer than the target of {target_active_dims}, "
                f"and lost dims come back slowly; write start_active_dims: {start} under model."
            )
        told = {
            "dead": f"documents start with next to no active dims ({active_dims:.1f} on average)",
            "dense": f"documents start dense ({active_dims:,.0f} active dims, {active_dims / vocab_size:.0%} of the "
            "vocabulary)",
            "partly_dead": f"{self.condition.empty_share:.0%} of documents start without active dims",
            "constant": f"documents start nearly constant (mean cosine similarity {self.condition.similarity:.3f})",
        }
        return f"{told[problem]}; {self._remedy(problem, vocab_size)}"

    def _remedy(self, problem: Problem, vocab_size: int) -> str:
        """What to do; `auto` is no advice where it has set the bias, which makes no texts differ that are alike."""
        look = "look whether texts of the data differ"
        if self.set_dims == usual_active_dims(vocab_size):
            tried = f"the decoder bias is set for {self.set_dims} active dims already and does not help"
            if problem == "constant":
                return f"{tried}, so {look}."
            return f"{tried}; write another number of dims as model.start_active_dims, or take another base model."
        auto = f"write start_active_dims: auto under model to start from {START_ACTIVE_DIMS}, or another number of dims"
        return f"{look}; if they do, {auto}." if problem == "constant" else f"{auto}."


def start_of_target(target_active_dims: int) -> int:
    """Active dims to start from for a target: 30% more, as dims that are lost come back slowly; 200 at least.

    >>> start_of_target(60), start_of_target(300)
    (200, 390)
    """
    return max(START_ACTIVE_DIMS, math.ceil(_START_OF_TARGET * target_active_dims))


def usual_active_dims(vocab_size: int) -> int:
    """Active dims to start from: 200, fewer where there are few to choose from."""
    return min(START_ACTIVE_DIMS, vocab_size // 4)


def set_start(
    encoder: AsymmetricSparseEncoder, corpus: TrainingCorpus, idf: str | None, active_dims: int | Literal["auto"] | None
) -> Start:
    """Set first query weights and decoder bias of an untrained encoder, in place; the same for the same corpus.

    With `idf` "corpus" the weights are the IDF of the training documents, else they stay. Documents start from
    `active_dims` on average. If not given, grafted heads start from 200 and others as they are; with "auto" those
    others too that would start dense, dead or nearly constant.
    """
    if idf == CORPUS_IDF:
        frequencies = corpus.document_frequencies(encoder.vocab_size)
        encoder.idf_weights.data.copy_(idf_from_document_frequencies(frequencies, corpus.num_documents))
    sample, document, found = corpus.sample_documents(SAMPLE_DOCUMENTS, seed=0), encoder.document, None
    usual = usual_active_dims(encoder.vocab_size)
    if document.grafted and active_dims in (None, AUTO):
        active_dims = usual
    with evaluation_mode(document), torch.no_grad():
        if active_dims in (None, AUTO):
            found = Condition.of(torch.cat([document(part) for part in sample.split(DOCUMENTS_AT_A_TIME)]))
            if active_dims is None or not Bounds(dense_dims(encoder.vocab_size)).problem(found):
                return Start(found)
            active_dims = usual
        logits = calibrate_bias(document, sample, int(active_dims))
        return Start(Condition.of(torch.log1p(torch.relu(logits))), found, int(active_dims))


def _check_finite(encoder: AsymmetricSparseEncoder, base_model: str) -> None:
    for name, parameter in encoder.named_parameters():
        if not parameter.detach().isfinite().all():
            raise UserError(
                f"{base_model}: its weights {name} are not finite, so it is damaged; get another copy of it."
            )
