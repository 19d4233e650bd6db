"""The padding-free body: all documents of a batch in one row of real tokens.

Linear layers work on single tokens; only attention depends on where a document ends, so only attention is replaced.
transformers' attention registry takes a function by name. Ours runs attention inside each document; the model passes
the cuts down as a keyword argument. A model that bypasses the registry, or makes its own positions, would silently
attend across documents. So no model runs packed before `packing_is_exact` has compared two packed documents with the
same two padded.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from splade_lit.core.tokens import Tokens
from splade_lit.encoder.body.dropout import draw_seed, dropout_attention, outside_window

ATTENTION_NAME = "splade_lit_packed"
_HAS_VARLEN = importlib.util.find_spec("torch.nn.attention.varlen") is not None


class DocumentOffsets:
    """Row numbers where documents begin, and the end, in a form that torch.compile does not look into.

    Given a tuple, it would compile the model again for each number of documents.
    """

    __slots__ = ("rows",)

    def __init__(self, rows: tuple[int, ...]) -> None:
        self.rows = rows


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    document_offsets: DocumentOffsets | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention inside each document of a packed row, in the signature of transformers' attention registry.

    `query`, `key` and `value` are `[1, heads, tokens, head_dim]`; with a `sliding_window` tokens attend to those less
    than so many positions away (ModernBERT's local layers). Without `document_offsets` this is transformers' own SDPA,
    for plain padded calls.

    Returns:
        `[1, tokens, heads, head_dim]` and None, as the registry asks.
    """
    if document_offsets is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=False, **kwargs
        )
    offsets = document_offsets.rows
    if query.is_cuda:
        if torch.is_autocast_enabled("cuda"):  # which does not act on kernels that are called directly
            query, key, value = (x.to(torch.get_autocast_dtype("cuda")) for x in (query, key, value))
        is_half = query.dtype in (torch.float16, torch.bfloat16)
        is_ampere = torch.cuda.get_device_capability(query.device) >= (8, 0)
        if is_half and is_ampere and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256:
            return _flash_attention(query, key, value, offsets, dropout, scaling, sliding_window), None
        if query.dtype == torch.float32 and query.shape[-1] % 8 == 0 and sliding_window is None:
            # torch's kernel for single precision; attention of jagged tensors calls it in the same way.
            query, key, value = (x.transpose(1, 2).contiguous() for x in (query, key, value))
            cuts = _cuts(offsets, query.device)
            return torch.ops.aten._efficient_attention_forward(
                query, key, value, None, *cuts, dropout, 0, True, scale=scaling
            )[0], None
    lengths = [end - start for start, end in pairwise(offsets)]
    dtype = query.dtype
    if query.is_cpu and query.dtype != torch.float64:
        query, key, value = query.float(), key.float(), value.float()  # attention's backward pass is slow in bf16 there
    if dropout and query.is_cpu and query.dtype in (torch.float32, torch.float64):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        dropped = dropout_attention(query, key, value, lengths, dropout, scaling, sliding_window, draw_seed())
        return dropped.to(dtype), None
    outputs = []
    for q, k, v in zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True):
        outside = outside_window(q.shape[2], sliding_window, q.device)
        mask = None if outside is None else ~outside
        with torch.autocast("cpu", enabled=False):
            outputs.append(scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=scaling))
    return torch.cat(outputs, dim=2).transpose(1, 2).to(dtype), None


@lru_cache(maxsize=4)  # all layers of a batch share it
def _cuts(offsets: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    """Offsets and longest document, of queries and of keys, as the kernels take them."""
    cuts = torch.tensor(offsets, dtype=torch.int32).to(device, non_blocking=True)
    longest = max(end - start for start, end in pairwise(offsets))
    return cuts, cuts, longest, longest


def _flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: tuple[int, ...],
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    window = -1 if sliding_window is None else sliding_window - 1
    query, key, value = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    operands = (query, key, value, *_cuts(offsets, query.device))
    if _HAS_VARLEN and not dropout:
        from torch.nn.attention.varlen import varlen_attn

        output = varlen_attn(*operands, scale=scaling, window_size=(window, window))
        assert isinstance(output, Tensor)
        return output[None]
    # `varlen_attn` calls this too, but without dropout.
    return torch.ops.aten._flash_attention_forward(
        *operands, dropout, False, False, scale=scaling, window_size_left=window, window_size_right=window
    )[0][None]


def _packed_mask(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    # A packed row needs no mask (the offsets cut it); a padded call of the same model keeps its own.
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(ATTENTION_NAME, torch.compiler.disable(packed_attention))
AttentionMaskInterface.register(ATTENTION_NAME, _packed_mask)


def position_offset(model: nn.Module) -> int:
    """Position of a text's first token: 0, or padding id + 1 in the RoBERTa family.

    RoBERTa's table of absolute positions keeps a row for padding; its `padding_idx` shows that.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def packed_inputs(tokens: Tokens, first_position: int) -> dict[str, Any]:
    """Keyword arguments of a masked-LM for one row of documents."""
    return {
        "input_ids": tokens.input_ids[None],
        "position_ids": tokens.positions[None] + first_position,
        "document_offsets": DocumentOffsets(tokens.offsets),
    }


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each part of the module has its own mode again."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def probe(model: PreTrainedModel, padding_id: int) -> Tokens:
    """Two short documents of unequal length."""
    ids = [id for id in range(int(model.config.vocab_size) - 1, 0, -1) if id != padding_id][:13]
    return Tokens.from_lists([ids[:9], ids[9:]]).to(model.device)


def is_same(ours: Tensor, expected: Tensor) -> bool:
    """Whether two ways to one result agree up to rounding."""
    tolerance = 1e-4 if expected.dtype == torch.float32 else 3e-2
    return torch.allclose(ours, expected, rtol=tolerance, atol=tolerance * float(expected.abs().amax()))


@torch.no_grad()
def packing_is_exact(model: PreTrainedModel, padding_id: int) -> bool:
    """Whether the model gives two documents in one row the same states as padded.

    The model's attention must already be `ATTENTION_NAME`. A model that refuses the packed call is not exact.
    """
    tokens = probe(model, padding_id)
    with evaluation_mode(model):
        padded = model(**tokens.padded(padding_id)).logits
        try:
            packed = model(**packed_inputs(tokens, position_offset(model))).logits[0]
        except (TypeError, RuntimeError, ValueError, IndexError):
            return False
    return is_same(packed, padded[tokens.text_index, tokens.positions])
