"""Models as miners and as teachers: BM25, one with a query table, and what sentence-transformers runs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array, vstack

from splade_lit.core.bm25 import BM25, word_counts, word_weights
from splade_lit.core.errors import UserError
from splade_lit.core.files import Folder, cache_folder
from splade_lit.core.progress import WorkProgress
from splade_lit.data.pairs import hashes
from splade_lit.encoder.layout import find_inference_free, model_folder, read_json
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.vectors import as_csr
from splade_lit.mining.miners import CrossEncoderScorer, DenseMiner, Miner, Scorer, SparseMiner
from splade_lit.teachers.kept_vectors import KeptVectors
from splade_lit.teachers.kinds import check_installed, load_teacher, teacher_kind

_CHUNK = 256  # documents between two steps of the progress


def check_source(source: str, option: str, searches: bool) -> None:
    """Raise a UserError, before anything long, if `open_scorer` cannot take a source, or as a miner, cannot search."""
    if source == BM25 or find_inference_free(source):
        return
    folder = model_folder(source)
    kind = teacher_kind(folder, source)
    labels = len(read_json(folder / "config.json", missing={}).get("id2label") or (0, 1))  # two where it does not say
    if kind == "cross-encoder" and labels != 1:
        raise UserError(f"{source} gives {labels} scores a pair; a cross-encoder that teaches gives one.")
    if searches and kind == "cross-encoder":
        raise UserError(f"{source} is a cross-encoder, which cannot search; give it as --teacher, and another miner.")
    check_installed(option)


def open_miner(
    source: str, texts: Sequence[str], device: torch.device, max_tokens: int | None = None, cache_dir: Folder = None
) -> Miner:
    """A miner over documents; the arguments are those of `open_scorer`, and `check_source` has been called."""
    miner = open_scorer(source, texts, device, max_tokens, cache_dir)
    assert isinstance(miner, SparseMiner | DenseMiner)
    return miner


def open_scorer(
    source: str,
    texts: Sequence[str],
    device: torch.device,
    max_tokens: int | None = None,
    cache_dir: Folder = None,
    logits: bool = False,
) -> Scorer:
    """What scores queries with documents, which are encoded here.

    Args:
        source: `bm25` (over words, as `bm25_result` has them), or a model as folder, Hub id or `package:NAME/FOLDER`:
            with a query table, a sentence encoder, a cross-encoder or another sparse encoder.
        texts: the documents, all different.
        device: where a model runs.
        max_tokens: tokens of a text that a sentence encoder reads; as many as it can if not given.
        cache_dir: where vectors of sentence encoders are kept.
        logits: take a cross-encoder's logits, whatever function it has on top.

    Raises:
        UserError: there is no such model, or it cannot be read.
    """
    if source == BM25:
        weights, words = word_weights("mine", texts)
        return SparseMiner(weights, lambda queries: word_counts(queries, words))
    if find_inference_free(source):
        encoder = AsymmetricSparseEncoder.load(source, device=device)
        vectors = encoder.encode_document(list(texts), show_progress_bar=True, convert_to_csr=True)
        return SparseMiner(vectors, lambda queries: encoder.encode_query(list(queries), convert_to_csr=True))
    folder = model_folder(source)
    kind = teacher_kind(folder, source)
    if kind == "sentence encoder":
        return _sentence_encoder(folder, texts, device, max_tokens, cache_folder(cache_dir))
    model = load_teacher(folder, kind, device)
    if kind == "cross-encoder":
        scorer = CrossEncoderScorer(partial(model.predict, show_progress_bar=False), texts)
        return scorer.in_logits() if logits else scorer
    parts = []
    with WorkProgress("encoding", "documents", len(texts)) as progress:
        for start in range(0, len(texts), _CHUNK):
            parts.append(as_csr(model.encode_document(list(texts[start : start + _CHUNK]), show_progress_bar=False)))
            progress.advance(parts[-1].shape[0])
    documents = csr_array(vstack(parts, format="csr"))
    return SparseMiner(documents, lambda qs: as_csr(model.encode_query(list(qs), show_progress_bar=False)))


def _sentence_encoder(
    folder: Path, texts: Sequence[str], device: torch.device, max_tokens: int | None, cache: Path
) -> DenseMiner:
    """Its vectors of documents are kept on disk, where a teacher in training in fp32 finds them too."""
    kept = KeptVectors(folder, max_tokens, device, cache)
    keys, lengths = hashes(texts), np.array(list(map(len, texts)))
    vectors = kept.of("document", keys, lengths, lambda at: [texts[place] for place in at.tolist()], "encoding")
    return DenseMiner(vectors.gather(vectors.rows(keys)), lambda queries: kept.encoder.encode(queries, "query"), device)
