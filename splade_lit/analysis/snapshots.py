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
    """Vectors of documents, `[documents, vocab]`, by a model at some point: "start", "step 120", another model."""

    label: str
    documents: csr_array


def snapshot_of(label: str, encoder: AsymmetricSparseEncoder, texts: Sequence[str]) -> Snapshot:
    """Encode the documents with a model, by its own tokenizer, prompt and limit."""
    return Snapshot(label, encoder.encode_document(texts, convert_to_csr=True))


def run_snapshots(subject: Subject, texts: Sequence[str], max_checkpoints: int = 4) -> list[Snapshot]:
    """The snapshots of a run: its start, made again from its settings and data, and its checkpoints.

    Where there are more than `max_checkpoints`, so many are taken, evenly spaced, the last one among them.

    Raises:
        UserError: there is no run, its base model or its data cannot be read any more, or a checkpoint does not fit.
    """
    run = subject.required_run()
    snapshots = [snapshot_of("start", initial_encoder(subject, training_data(subject)), texts)]
    encoder = AsymmetricSparseEncoder.load(run.folder / MODEL)
    found = run.checkpoints()
    ends = np.linspace(0, len(found), min(max_checkpoints, len(found)) + 1)[1:]
    for step, path in (found[round(end) - 1] for end in ends):
        load_weights(encoder, path)
        snapshots.append(snapshot_of(f"step {step}", encoder, texts))
    if len(snapshots) == 1:
        snapshots.append(snapshot_of("end", subject.encoder, texts))
    return snapshots


def other_snapshot(subject: Subject, other: str | Path, texts: Sequence[str]) -> Snapshot:
    """Another model (see `open_subject`) as a snapshot, to compare with that of a subject.

    Raises:
        UserError: there is no such model, or its vocabulary is another one.
    """
    second = open_subject(other)
    if second.tokens != subject.tokens:
        raise UserError(f"{other} has another vocabulary than {subject.name}; compare models of one tokenizer.")
    return snapshot_of(str(other), second.encoder, texts)


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
    """What documents gain and lose from the snapshot labelled `before` to the one labelled `after`.

    `kept`, `gained` and `lost` count terms of each document, `gaining` and `losing` the documents that do so by term.
    """

    before: str
    after: str
    kept: Int64[np.ndarray, " documents"]
    gained: Int64[np.ndarray, " documents"]
    lost: Int64[np.ndarray, " documents"]
    gaining: Int64[np.ndarray, " vocab"]
    losing: Int64[np.ndarray, " vocab"]


def term_changes(before: Snapshot, after: Snapshot) -> TermChanges:
    """Compare which terms are active in two snapshots of the same documents."""
    first, second = before.documents != 0, after.documents != 0
    both = first.multiply(second)
    kept, shared = both.sum(axis=1), both.sum(axis=0)
    gained, lost = second.sum(axis=1) - kept, first.sum(axis=1) - kept
    gaining, losing = second.sum(axis=0) - shared, first.sum(axis=0) - shared
    return TermChanges(before.label, after.label, kept, gained, lost, gaining, losing)


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
    """How the terms of one document (a row) change from the first snapshot to the last.

    Those n / 2 that rise most are shown, and those n / 2 that fall most.
    """
    weights = np.stack([snapshot.documents[[row]].toarray()[0] for snapshot in snapshots], axis=1)
    first, last = weights[:, 0], weights[:, -1]
    difference = last - first
    rises, falls = (np.argsort(sign * difference, kind="stable")[: n // 2] for sign in (-1, 1))
    dims = [*rises[difference[rises] > 0], *falls[difference[falls] < 0][::-1]]
    labels, terms = [snapshot.label for snapshot in snapshots], [tokens[dim] for dim in dims]
    gained, lost = int(((first == 0) & (last > 0)).sum()), int(((first > 0) & (last == 0)).sum())
    return DocumentHistory(labels, terms, weights[dims].astype(np.float32), gained, lost)
