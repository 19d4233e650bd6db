"""Document encoders as ONNX with the pooling inside the graph, and the files that encode queries.

    model.onnx        input_ids, attention_mask [documents, tokens] -> vectors, in one of two forms:
                      dense: embeddings [documents, vocab]; sparse: indices [active, 2] (document, dim), values [active]
    model_int8.onnx   the same with 8-bit weights, if asked for
    tokenizer.json    the tokenizer, of documents (with its special tokens) and of queries (without)
    idf.json          token to query weight; tokens that weigh nothing are left out
    config.json       limits of tokens and of weights, prompts, pooling

The number of documents and of tokens is free. Limits on the weights (`Pruning`) are not in the graph;
the reader applies them.
"""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from splade_lit.core.errors import UserError
from splade_lit.core.tokens import Tokens
from splade_lit.data.tasks import RetrievalTask
from splade_lit.encoder.body.packing import evaluation_mode
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.saved_writer import save_tokenizer
from splade_lit.engines.onnx import INT8_MODEL, MODEL, OnnxDocumentEncoder, require_packages
from splade_lit.evaluation.task_evaluation import TokenisedTask, evaluate_task

Values = Literal["dense", "sparse"]

# Largest difference of an element from PyTorch's vectors, and of 8-bit weights' vectors relative to their length.
TOLERANCE, INT8_TOLERANCE = 1e-4, 0.1
# What 8-bit weights may cost of nDCG@10 without a warning.
INT8_LOSS = 0.005
# Shapes on which the written graph is compared; it was traced with another one.
_CHECKED_LENGTHS: tuple[tuple[int, ...], ...] = ((2,), (5, 3, 9), (40, 17, 1, 2))
_OUTPUTS: dict[str, list[str]] = {"dense": ["embeddings"], "sparse": ["indices", "values"]}
# A matrix becomes 8-bit if nothing but products and look-ups of embeddings use it.
_MATRIX_USERS = {"MatMul", "Gemm", "Gather", "Transpose"}

logger = logging.getLogger(__name__)


class PooledModel(nn.Module):
    """A whole masked-language model with the pooling of a document encoder over padded documents: the graph."""

    def __init__(self, model: PreTrainedModel, document: MlmDocumentEncoder, values: Values) -> None:
        super().__init__()
        self.model, self.values = model, values
        self.pooling, self.activation = document.pooling, document.activation

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Vectors of padded documents."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        # No activation lets -inf through, so padding adds nothing to a sum either.
        logits = logits.masked_fill(attention_mask[:, :, None] == 0, -torch.inf)
        weights = torch.log1p(torch.relu(logits.amax(1) if self.pooling == "max" else logits))
        if self.activation == "log1p_relu":
            weights = torch.log1p(weights)
        embeddings = weights if self.pooling == "max" else weights.sum(1)
        if self.values == "dense":
            return embeddings
        indices = embeddings.nonzero()
        return indices, embeddings[indices[:, 0], indices[:, 1]]


def export_onnx(
    encoder: AsymmetricSparseEncoder, folder: str | Path, *, values: Values = "dense", int8: bool = False
) -> None:
    """Write an encoder as ONNX with its tokenizer, query table and settings, if its graph gives PyTorch's vectors.

    Args:
        encoder: the encoder, on the CPU.
        folder: folder to write to; other files in it stay.
        values: "dense" for `[documents, vocab]`, "sparse" for indices and values of the active dims.
        int8: write the graph with 8-bit weights too; its products are those of 32-bit floats, so that its vectors do
            not depend on the processor.

    Raises:
        UserError: packages are missing, the model cannot be exported, the vectors of a graph differ, or the folder
            cannot be written; what was there before is untouched.
    """
    require_packages("onnx", "onnxscript", "onnxruntime")
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target) as name:
            scratch = Path(name)
            _write_settings(encoder, scratch, values)
            _write_graph(encoder.document, scratch / MODEL, values)
            if int8:
                _write_int8(scratch / MODEL, scratch / INT8_MODEL)
            _check(encoder, scratch, int8)
            if not int8:
                (target / INT8_MODEL).unlink(missing_ok=True)  # that of another model
            for path in scratch.iterdir():
                path.chmod(0o644)
                shutil.move(path, target / path.name)
    except OSError as error:
        raise UserError(
            f"The export cannot be written to {target} ({error.strerror}); choose another folder."
        ) from error


def _write_settings(encoder: AsymmetricSparseEncoder, folder: Path, values: Values) -> None:
    save_tokenizer(encoder.tokenizer, encoder.document, folder, encoder.max_document_tokens)
    tokens = encoder.tokenizer.convert_ids_to_tokens(list(range(encoder.vocab_size)))
    weights = encoder.idf_weights.detach().float().tolist()
    table = {token: weight for token, weight in zip(tokens, weights, strict=True) if weight and token is not None}
    settings = {
        **{name: getattr(encoder, name) for name in ("vocab_size", "max_query_tokens", "max_document_tokens")},
        **asdict(encoder.pruning),
        **{name: getattr(encoder.document, name) for name in ("padding_id", "pooling", "activation")},
        **{"prompts": dict(encoder.prompts), "values": values},
    }
    for name, content in (("idf.json", table), ("config.json", settings)):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_graph(document: MlmDocumentEncoder, path: Path, values: Values) -> None:
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    input_ids = torch.arange(24).reshape(2, 12) % document.vocab_size
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 7:] = 0
    with _exported_model(document) as model:
        try:
            program = torch.onnx.export(
                PooledModel(model, document, values).eval(),
                (input_ids, attention_mask),
                input_names=["input_ids", "attention_mask"],
                output_names=_OUTPUTS[values],
                dynamic_shapes={"input_ids": free, "attention_mask": free},
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise UserError(
                f"{type(model).__name__} cannot be exported: torch's exporter does not know some operation of it."
            ) from error
    assert program is not None
    program.save(path)


@contextmanager
def _exported_model(document: MlmDocumentEncoder) -> Iterator[PreTrainedModel]:
    """The whole model with plain attention, in evaluation mode; afterwards it is as it was."""
    attention = document.model.config._attn_implementation
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with document.whole_model() as model, evaluation_mode(document), torch.no_grad(), warnings.catch_warnings():
        model.set_attn_implementation("eager")
        # The exporter logs optional packages and deprecations of its own.
        logger.setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        try:
            yield model
        finally:
            logger.setLevel(level)
            model.set_attn_implementation(attention)


def _check(encoder: AsymmetricSparseEncoder, folder: Path, int8: bool) -> None:
    """Compare the graphs with PyTorch on texts of random tokens."""
    generator = np.random.default_rng(0)
    longest = encoder.max_document_tokens
    # Padding is no token of a text: models of the RoBERTa family count positions without it.
    words = np.setdiff1d(np.arange(encoder.vocab_size), [encoder.document.padding_id])
    graphs = [OnnxDocumentEncoder(folder, name) for name in (MODEL, INT8_MODEL)[: 1 + int8]]
    lost = total = 0.0
    for lengths in (*_CHECKED_LENGTHS, (longest, 2)):
        ids = [generator.choice(words, size=min(length, longest)) for length in lengths]
        with evaluation_mode(encoder), torch.no_grad():
            expected = encoder.document(Tokens.from_lists(ids)).numpy()
        found, *rounded = (graph._run(ids).toarray() for graph in graphs)
        if not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise UserError(
                f"The exported graph differs from PyTorch by {np.abs(found - expected).max():.2g}, so it is not "
                "written; try another release of torch or onnxruntime."
            )
        lost += sum(np.square(vectors - expected).sum() for vectors in rounded)
        total += np.square(expected).sum()
    if lost > INT8_TOLERANCE**2 * total:
        raise UserError(
            f"With 8-bit weights the vectors of this model change by {np.sqrt(lost / total):.0%}, so nothing is "
            "written; export it without --int8."
        )


def _write_int8(source: Path, target: Path) -> None:
    """Write a graph again with its matrices as 8-bit whole numbers, a scale for each block of a row.

    The graph itself turns them into 32-bit floats, with nodes that onnxruntime runs once, when it loads the graph. All
    products are then those of the source, so that results depend on the weights' rounding alone and not on the
    processor. Activations stay as they are: one scale for a whole tensor of them, as in dynamic quantisation, moves
    document vectors by 15 percent, the products behind the widest activations most (`docs/onnx.md`).
    """
    import onnx

    model = onnx.load(source)
    users: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    nodes: list[Any] = []
    for tensor in list(model.graph.initializer):
        matrix = onnx.numpy_helper.to_array(tensor)
        if matrix.dtype != np.float32 or matrix.ndim != 2 or not users.get(tensor.name, set()) <= _MATRIX_USERS:
            continue
        name = tensor.name
        parts = [f"{name}_{part}" for part in ("int8", "scale", "shape")]
        arrays = (*to_int8(matrix), np.array(matrix.shape))
        model.graph.initializer.remove(tensor)
        model.graph.initializer.extend(map(onnx.numpy_helper.from_array, arrays, parts))
        nodes += [
            onnx.helper.make_node("Cast", parts[:1], [f"{name}_float"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", [f"{name}_float", parts[1]], [f"{name}_blocks"]),
            onnx.helper.make_node("Reshape", [f"{name}_blocks", parts[2]], [name]),
        ]
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)


def to_int8(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of the rows of a float32 matrix as whole numbers from -127 to 127, and the scale of each.

    int8 `[blocks, size]` times float32 `[blocks, 1]` has the elements of the matrix in their order. A block has 32 to
    64 elements of a row, or the whole row where its length has no such divisor.

    >>> to_int8(np.array([[1, -2], [0, 0]], np.float32))[0].tolist()
    [[64, -127], [0, 0]]
    """
    columns = matrix.shape[1]
    blocks = matrix.reshape(-1, next((size for size in range(64, 31, -1) if columns % size == 0), columns))
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(blocks / np.where(scales > 0, scales, 1)).astype(np.int8), scales


def compare_with_graphs(encoder: AsymmetricSparseEncoder, folder: Path, task: RetrievalTask, int8: bool) -> str:
    """A line with nDCG@10 of an encoder and of its graphs; a warning if 8-bit weights cost more than `INT8_LOSS`."""
    tokenised = TokenisedTask.of(task, encoder)
    reference = evaluate_task(encoder, tokenised).metrics["ndcg@10"]
    parts = [f"PyTorch {reference:.4f}"]
    for name, file in [("ONNX", MODEL)] + [("int8", INT8_MODEL)] * int8:
        change = evaluate_task(OnnxDocumentEncoder(folder, file), tokenised).metrics["ndcg@10"] - reference
        parts.append(f"{name} {reference + change:.4f} ({change:+.4f})")
        if change < -INT8_LOSS:
            logger.warning("%s loses more than %s of nDCG@10 on %s; use %s.", file, INT8_LOSS, task.name, MODEL)
    return f"{task.name} nDCG@10: {', '.join(parts)}"
