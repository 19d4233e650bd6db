"""Sparse vectors of this model with numpy, onnxruntime and tokenizers alone.

client = Client()
client.encode_document(["The capital of France."])  # [(dims, weights)]: int32, ascending, and float32
client.terms(*client.encode_query(["capital of france"])[0])  # {token: weight}
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

Vector = tuple[np.ndarray, np.ndarray]


class Client:
    """The encoder of a folder; threads may share it. `providers` are onnxruntime's names of the hardware to use."""

    def __init__(
        self, folder: str | Path = Path(__file__).parent, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        folder = Path(folder)
        self.settings, idf = (json.loads((folder / name).read_text("utf-8")) for name in ("bundle.json", "idf.json"))
        self._queries, self._documents = (Tokenizer.from_file(str(folder / "tokenizer.json")) for _ in range(2))
        self._documents.enable_truncation(self.settings["max_document_tokens"], direction=self.settings["truncation"])
        self._documents.enable_padding(pad_id=self.settings["padding_id"])
        self._session = onnxruntime.InferenceSession(folder / self.settings["model"], providers=list(providers))
        self._idf = np.zeros(self.settings["vocab_size"], np.float32)
        dims = self._queries.get_vocab()
        self._names = {dim: self.settings["features"].get(token, token) for token, dim in dims.items()}
        self._idf[[dims[token] for token in idf]] = list(idf.values())

    def encode_query(self, texts: Sequence[str]) -> list[Vector]:
        """Vectors of queries: their distinct tokens are looked up, without a neural network."""
        most, from_left = self.settings["max_query_tokens"], self.settings["truncation"] == "right"
        encoded = self._queries.encode_batch(self._prompted("query", texts), add_special_tokens=False)
        rows = [one.ids for one in encoded]
        dims = [np.unique(np.array(row[:most] if from_left else row[-most:], np.int32)) for row in rows]
        return [_kept(row, self._idf[row], self.settings["max_query_active_dims"]) for row in dims]

    def encode_document(self, texts: Sequence[str], batch_size: int = 4) -> list[Vector]:
        """Vectors of documents; those of like length share a batch, for which memory holds all logits."""
        limits = [self.settings[name] for name in _DOCUMENT_LIMITS]
        texts, vectors = self._prompted("document", texts), {}
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        for rows in (order[start : start + batch_size] for start in range(0, len(order), batch_size)):
            encoded = self._documents.encode_batch([texts[row] for row in rows])
            ids = [one.ids or [self.settings["padding_id"]] for one in encoded]  # the graph wants a token at least
            inputs = {"input_ids": ids, "attention_mask": [one.attention_mask or [0] for one in encoded]}
            (found,) = self._session.run(None, {name: np.array(values, np.int64) for name, values in inputs.items()})
            for row, weights in zip(rows, found, strict=True):
                vectors[row] = _kept(np.flatnonzero(weights), weights[weights != 0], *limits)
        return [vectors[row] for row in range(len(texts))]

    def terms(self, dims: np.ndarray, weights: np.ndarray) -> dict[str, float]:
        """Token to weight, the largest first, as engines take them: positive, under names that none refuses."""
        order = [n for n in np.argsort(-weights, kind="stable") if weights[n] > 0]
        return {self._names.get(dims[n], f"%d{dims[n]}"): float(weights[n]) for n in order}

    def _prompted(self, side: str, texts: Sequence[str]) -> list[str]:
        if isinstance(texts, str):
            raise TypeError("give a list of texts, not one text")
        return [self.settings["prompts"][side] + text for text in texts]


_DOCUMENT_LIMITS = ("max_document_active_dims", "min_document_weight", "min_document_weight_share")


def _kept(dims: np.ndarray, weights: np.ndarray, most: int | None, least: float = 0.0, share: float = 0.0) -> Vector:
    kept = np.sort(np.argsort(-np.abs(weights), kind="stable")[:most])
    sizes = np.abs(weights[kept])
    kept = kept[(sizes > 0) & (sizes >= np.maximum(share * sizes.max(initial=0), np.float32(least)))]
    return dims[kept].astype(np.int32), weights[kept]
