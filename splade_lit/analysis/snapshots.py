"""From checkpoint to checkpoint: which terms documents gain and lose."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from scipy.sparse import csr_array

from splade_lit.analysis.subject import Subject, initial_encoder, open_subject, training_data
from splade_lit.core.errors import UserError
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.runs.folder import MODEL, encoder_state, read_checkpoint


@dataclass(frozen=True)
class Snapshot:
    """A model at some point, and its vectors of the same documents.

    Attributes:
        label: what to call it: "start", "step 120", the name of another model.
        documents: `[documents, vocab]`.
    """

    label: str
    documents: csr_array


def snapshot_of(label: str, encoder: AsymmetricSparseEncoder, texts: Sequence[str]) -> Snapshot:
    """Encode the documents with a model, by its own tokenizer, prompt and limit."""
    return Snapshot(label, encoder.encode_document(texts, convert_to_csr=True))


def run_snapshots(subject: Subject, texts: Sequence[str], max_checkpoints: int = 4) -> list[Snapshot]:
    """The snapshots of a run: its start, made again from its settings and data, and its checkpoints.

    Args:
        subject: the model with its run.
        texts: the documents.
        max_checkpoints: how many checkpoints at most, evenly spaced, the last among them.

    Raises:
        UserError: there is no run, its base model or its data cannot be read any more, or a checkpoint does not fit.
    """
    run = subject.required_run()
    snapshots = [snapshot_of("start", initial_encoder(subject, training_data(subject)), texts)]
    encoder = AsymmetricSparseEncoder.load(run.folder / MODEL)
    for step, path in spaced(run.checkpoints(), max_checkpoints):
        load_weights(encoder, path)
        snapshots.append(snapshot_of(f"step {step}", encoder, texts))
    if len(snapshots) == 1:
        snapshots.append(snapshot_of("end", subject.encoder, texts))
    return snapshots


def other_snapshot(subject: Subject, other: str | Path, texts: Sequence[str]) -> Snapshot:
    """Another model as a snapshot.

    Args:
        subject: the model that it is compared with.
        other: see `open_subject`.
        texts: the documents.

    Raises:
        UserError: there is no such model, or its vocabulary is another one.
    """
    second = open_subject(other)
    if second.tokens != subject.tokens:
        raise UserError(f"{other} has another vocabulary than {subject.name}; compare models of one tokenizer.")
    return snapshot_of(str(other), second.encoder, texts)


def spaced(found: Sequence[tuple[int, Path]], count: int) -> list[tuple[int, Path]]:
    """At most so many of them, evenly spaced, the last one among them.

    >>> [step for step, _ in spaced([(step, Path()) for step in (10, 20, 30, 40, 50)], 2)]
    [20, 50]
    """
    if len(found) <= count:
        return list(found)
    ends = np.linspace(0, len(found), count + 1)[1:]
    return [found[round(end) - 1] for end in ends]


def load_weights(encoder: AsymmetricSparseEncoder, path: Path) -> None:
    """Load the weights of a checkpoint into the encoder of the same run.

    Raises:
        UserError: they are those of another model.
    """
    weights = encoder_state(read_checkpoint(path, device="cpu", resumable=False))
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path} is a checkpoint of another model than the one in its run.") from error


@dataclass(frozen=True)
class TermChanges:
    """What documents gain and lose from one snapshot to the next.

    Attributes:
        before: label of the first snapshot.
        after: label of the second.
        kept: terms of each document that are active in both.
        gained: terms of each document that only the second has.
        lost: terms of each document that only the first has.
        gaining: documents that gain each term.
        losing: documents that lose each term.
    """

    before: str
    after: str
    kept: Int64[np.ndarray, " documents"]
    gained: Int64[np.ndarray, " documents"]
    lost: Int64[np.ndarray, " documents"]
    gaining: Int64[np.ndarray, " vocab"]
    losing: Int64[np.ndarray, " vocab"]


def term_changes(before: Snapshot, after: Snapshot) -> TermChanges:
    """Compare which terms are active in the same documents.

    Args:
        before: first snapshot, `[documents, vocab]`.
        after: second snapshot, of the same documents.
    """
    first, second = (_active(snapshot.documents) for snapshot in (before, after))
    both = csr_array(first.multiply(second))
    kept = _counts(both, axis=1)
    gained, lost = _counts(second, axis=1) - kept, _counts(first, axis=1) - kept
    shared = _counts(both, axis=0)
    gaining, losing = _counts(second, axis=0) - shared, _counts(first, axis=0) - shared
    return TermChanges(before.label, after.label, kept, gained, lost, gaining, losing)


def _active(vectors: csr_array) -> csr_array:
    return csr_array((np.ones_like(vectors.data, dtype=np.int64), vectors.indices, vectors.indptr), shape=vectors.shape)


def _counts(active: csr_array, axis: int) -> Int64[np.ndarray, " counts"]:
    return np.asarray(active.sum(axis=axis), dtype=np.int64)


@dataclass(frozen=True)
class DocumentHistory:
    """The terms of one document over the snapshots.

    Attributes:
        labels: of the snapshots.
        terms: those that moved most: the largest rise first, the largest fall last.
        weights: `[terms, snapshots]`, 0 where a term is not active.
        gained: terms that the last snapshot has and the first has not.
        lost: terms that the first has and the last has not.
    """

    labels: list[str]
    terms: list[str]
    weights: Float32[np.ndarray, "terms snapshots"]
    gained: int
    lost: int


def document_history(snapshots: Sequence[Snapshot], row: int, tokens: Sequence[str], n: int = 20) -> DocumentHistory:
    """How the terms of one document change.

    Args:
        snapshots: in order.
        row: of the document.
        tokens: the token of each dim.
        n: how many terms: half of them those that rise most from the first to the last snapshot, half those that fall.
    """
    weights = np.stack([snapshot.documents[[row]].toarray()[0] for snapshot in snapshots], axis=1)
    first, last = weights[:, 0], weights[:, -1]
    difference = last - first
    rises, falls = (np.argsort(sign * difference, kind="stable")[: n // 2] for sign in (-1, 1))
    dims = [*rises[difference[rises] > 0], *falls[difference[falls] < 0][::-1]]
    return DocumentHistory(
        labels=[snapshot.label for snapshot in snapshots],
        terms=[tokens[dim] for dim in dims],
        weights=weights[dims].astype(np.float32),
        gained=int(((first == 0) & (last > 0)).sum()),
        lost=int(((first > 0) & (last == 0)).sum()),
    )
