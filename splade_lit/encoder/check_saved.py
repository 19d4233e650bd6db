"""Whether a saved model is the one in memory: it is read again and compared."""

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch

from splade_lit.core.errors import UserError
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query_side import load_query_side
from splade_lit.encoder.vectors import as_csr


def check_saved(
    encoder: AsymmetricSparseEncoder, folder: str | Path, texts: Sequence[str], trust_remote_code: bool = False
) -> None:
    """Read a saved model again and compare all weights, its settings, and the vectors of a few texts on both sides.

    Raises:
        UserError: they differ.
    """
    saved = AsymmetricSparseEncoder.load(
        folder, device=encoder.device, packed=encoder.document.packed, trust_remote_code=trust_remote_code
    )
    settings = {name: name for name in ("max_query_tokens", "max_document_tokens", "prompts", "pruning")}
    settings |= {name: f"document.{name}" for name in ("pooling", "activation")}
    settings["frozen query weights"] = "query.frozen"
    differing = [name for name, path in settings.items() if attrgetter(path)(encoder) != attrgetter(path)(saved)]
    if not hasattr(encoder.document.model, "merge_and_unload"):  # adapters are saved merged into the weights
        here, there = encoder.state_dict(), saved.state_dict()
        differing += sorted(here.keys() ^ there.keys())
        differing += [name for name in here if name in there and not torch.equal(here[name], there[name])]
    queries = encoder.encode_query(texts)
    for name, vectors, others in (
        ("vectors of queries", queries, saved.encode_query(texts)),
        ("vectors of queries looked up without a model", queries, load_query_side(folder).encode(texts)),
        ("vectors of documents", encoder.encode_document(texts), saved.encode_document(texts)),
    ):
        if not np.allclose(as_csr(vectors).toarray(), as_csr(others).toarray(), rtol=1e-3, atol=1e-3):
            differing.append(name)
    if differing:
        raise UserError(
            f"The model in {folder} is not the one that was trained: read again, it differs in {differing[0]}"
            f"{f' and {len(differing) - 1} more' if differing[1:] else ''}; use a checkpoint of the run instead."
        )
