"""Document encoders that `export onnx` has written, in onnxruntime."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from transformers import AutoTokenizer

from splade_lit.core.errors import UserError, first_line
from splade_lit.core.text import parse_json
from splade_lit.core.tokenisation import Tokenisation
from splade_lit.core.tokens import Tokens
from splade_lit.encoder.masked_lm import quiet_transformers
from splade_lit.encoder.pruning import Pruning
from splade_lit.encoder.rows import encode_by_length, keep_largest, look_up
from splade_lit.encoder.table import idf_from_json
from splade_lit.encoder.vectors import as_csr

MODEL, INT8_MODEL = "model.onnx", "model_int8.onnx"
# Padded tokens of a batch at inference; memory holds the logits of all of them.
_TOKENS_PER_BATCH = 2048
_MOST_DIMS = 1 << 24  # of a vocabulary; the largest in use have a million


class OnnxDocumentEncoder:
    """An exported model in onnxruntime; it can be evaluated like any encoder.

    `folder` is one that `export_onnx` wrote, `file` the graph to run.

    Raises:
        UserError: onnxruntime is missing, or the folder is not a whole export.
    """

    def __init__(self, folder: str | Path, file: str = MODEL) -> None:
        require_packages("onnxruntime")
        import onnxruntime

        folder = Path(folder)
        if not all((folder / name).is_file() for name in (file, "config.json", "idf.json", "tokenizer.json")):
            raise UserError(
                f"{folder} is no whole export; write one with `python -m splade_lit.export onnx MODEL_DIR`."
            )
        try:
            config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
            self.vocab_size: int = config["vocab_size"]
            if not 0 < self.vocab_size <= _MOST_DIMS:
                raise ValueError(f"vocab_size is {self.vocab_size}")
            known = {field.name: config[field.name] for field in fields(Pruning) if field.name in config}
            self.pruning = Pruning(**known).capped(config.get("max_active_dims"))  # which earlier exports have instead
            self._padding_id: int = config["padding_id"]
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(folder)
            limits = config["max_query_tokens"], config["max_document_tokens"]
            self.tokenisation = Tokenisation(tokenizer, *limits, config["prompts"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{folder} is a damaged export ({first_line(error)}); write it again.") from error
        self._query_weights = idf_from_json(folder / "idf.json", tokenizer.get_vocab(), self.vocab_size)
        self._session = onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])

    def encode_query_tokens(self, token_ids: Sequence[np.ndarray]) -> csr_array:
        """Query vectors `[queries, vocab]` from distinct token ids."""
        return keep_largest(look_up(self._query_weights, token_ids), self.pruning.max_query_active_dims)

    def encode_document_tokens(
        self, token_ids: Sequence[np.ndarray], *, on_batch: Callable[[int], None] | None = None
    ) -> csr_array:
        """Document vectors `[documents, vocab]` from token ids, in the order given.

        `on_batch` is called with the number of documents of each batch.
        """
        return encode_by_length(self._run, token_ids, _TOKENS_PER_BATCH, self.pruning, on_batch)

    def _run(self, token_ids: Sequence[np.ndarray]) -> csr_array:
        tokens = Tokens.from_lists(token_ids)
        if not len(tokens.input_ids):  # a graph wants a token at least
            return csr_array((len(tokens), self.vocab_size), dtype=np.float32)
        inputs = tokens.padded(self._padding_id)
        outputs = self._session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        if len(outputs) == 1:
            return as_csr(outputs[0])
        indices, values = outputs
        return as_csr(csr_array((values, indices.T), shape=(len(token_ids), self.vocab_size)))


def require_packages(*names: str) -> None:
    """Check that packages of the extra `onnx` are installed.

    Raises:
        UserError: one is missing.
    """
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            hint = "pip install -c constraints.txt -e '.[onnx]'"
            raise UserError(f"ONNX needs {name}, which is not installed; run `{hint}`.") from error
