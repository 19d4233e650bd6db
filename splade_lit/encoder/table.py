"""The table of query weights on disk: safetensors, torch's own form, or an `idf.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from splade_lit.core.errors import UserError, first_line
from splade_lit.core.files import replace_text, whole_file
from splade_lit.core.text import parse_json
from splade_lit.encoder.layout import SavedLayout


def read_table(layout: SavedLayout, vocabulary: Mapping[str, int], vocab_size: int) -> np.ndarray:
    """The query weights of a saved model, float32 `[vocab_size]`: all 1 for a masked-language model alone.

    `vocabulary` has the id of each token.

    Raises:
        UserError: they are missing, damaged, not finite, or more than there are tokens.
    """
    if layout.idf_json is not None:
        return idf_from_json(layout.idf_json, vocabulary, vocab_size)
    if layout.query_folder is None:
        return np.ones(vocab_size, np.float32)
    weights = _read_weights(layout.query_folder)
    if weights.ndim != 1 or len(weights) > vocab_size:
        raise UserError(
            f"The query weights in {layout.query_folder} have the shape {list(weights.shape)}, but the vocabulary has "
            f"{vocab_size} entries; fetch the model again."
        )
    if not np.isfinite(weights).all():
        raise UserError(
            f"{layout.query_folder} holds query weights that are not finite; the model diverged in training."
        )
    # Dims beyond the table belong to padding of the vocabulary: no query reaches them.
    return np.pad(weights, (0, vocab_size - len(weights)))


def write_table(layout: SavedLayout, weights: np.ndarray, tokens: Sequence[str]) -> Path:
    """Write query weights, float32 `[vocab]`, in place of those of a saved model, whole or not at all.

    `tokens` has the token of each weight. Returns the file.

    Raises:
        UserError: the model has no table, or the file cannot be written.
    """
    if layout.idf_json is not None:
        table = {token: float(weight) for token, weight in zip(tokens, weights, strict=True) if weight != 0}
        replace_text(layout.idf_json, json.dumps(table, ensure_ascii=False) + "\n")
        return layout.idf_json
    if layout.query_folder is None:
        raise UserError(f"{layout.source} has no table of query weights: it is a masked-language model alone.")
    path = layout.query_folder / "model.safetensors"
    try:
        with whole_file(path) as temporary:
            save_file({"weight": np.ascontiguousarray(weights, dtype=np.float32)}, temporary)
            temporary.chmod(0o644)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written ({first_line(error)}); what was there is untouched.") from error
    return path


def _read_weights(folder: Path) -> np.ndarray:
    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        if safe.is_file():
            with safe_open(safe, framework="np") as file:
                if file.get_slice("weight").get_dtype() in ("F64", "F32", "F16"):
                    return file.get_tensor("weight").astype(np.float32)
            from safetensors.torch import load_file  # numpy has no bfloat16

            return load_file(safe)["weight"].float().numpy()
        if pickled.is_file():
            import torch

            return torch.load(pickled, map_location="cpu", weights_only=True)["weight"].float().numpy()
    except Exception as error:  # safetensors and pickle raise types of their own for files that they cannot read
        raise UserError(f"The query weights in {folder} are damaged; fetch the model again.") from error
    raise UserError(f"{folder} has no weights (model.safetensors); fetch the model again.")


def idf_from_json(path: str | Path, vocabulary: Mapping[str, int], vocab_size: int) -> np.ndarray:
    """IDF weights from a JSON object of token to weight, the form that OpenSearch's models publish as `idf.json`.

    `vocabulary` has the id of each token. Tokens that the file leaves out get 0; entries that are no token are ignored.

    Raises:
        UserError: the file is missing, is not such a JSON object, or shares no token with the tokenizer.
    """
    try:
        table = parse_json(Path(path).read_text(encoding="utf-8"))
        pairs = [(str(token), float(weight)) for token, weight in table.items()]
    except OSError as error:
        raise UserError(
            f"The IDF table {path} cannot be read ({error.strerror}); give the path of an idf.json."
        ) from None
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"{path} is not an IDF table; it must be a JSON object of token to weight.") from None
    weights = np.zeros(vocab_size, np.float32)
    known = {vocabulary[token]: weight for token, weight in pairs if vocabulary.get(token, vocab_size) < vocab_size}
    if not known:
        raise UserError(f"{path} shares no token with the model's tokenizer; give the IDF table of this vocabulary.")
    weights[list(known)] = list(known.values())
    if not np.isfinite(weights).all():
        raise UserError(f"{path} holds weights that are not finite; mend the file.")
    return weights
