"""The document side: a masked-language model whose logits are pooled over tokens into one vocabulary vector."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from splade_lit.core.errors import UserError
from splade_lit.core.tokens import Tokens
from splade_lit.encoder.body import packing
from splade_lit.encoder.body.dropout import use_cpu_dropout
from splade_lit.encoder.body.sparse_head import Activation, Pooling, max_logits, splade_pool
from splade_lit.encoder.body.winners import first_maximum

logger = logging.getLogger(__name__)


class MlmDocumentEncoder(nn.Module):
    """Any `AutoModelForMaskedLM` with SPLADE pooling, fed with ragged tokens.

    The decoder (the last linear layer of the masked-LM head) is taken out of the model, so that the model ends in
    hidden states and the sparse head pools logits without ever holding all of them. The body runs without padding where
    the model follows transformers' attention registry, checked once at construction; else padded.

    Args:
        model: the masked-language model, with its decoder.
        padding_id: token id used where the model has to run padded.
        pooling: "max" or "sum" over tokens.
        activation: "relu" for log1p(relu(x)), "log1p_relu" for a second log1p.
        packed: run the body without padding if the model allows it.
        tile_columns: vocabulary entries of one tile of logits; chosen from the number of tokens if not given.

    Raises:
        UserError: the model's logits are not finite, or not its last hidden states times its output embeddings.

    Attributes:
        model: the body and the head up to the decoder.
        decoder: `nn.Linear` from hidden states to the vocabulary, tied to the input embeddings if the model says so.
        grafted: whether the head was put on a model that had none, and its bias is worth calibrating.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        padding_id: int = 0,
        pooling: Pooling = "max",
        activation: Activation = "relu",
        packed: bool = True,
        tile_columns: int | None = None,
    ) -> None:
        super().__init__()
        decoder = model.get_output_embeddings()
        if not isinstance(decoder, nn.Linear):
            raise UserError(
                f"{type(model).__name__} has no linear decoder; use a model that AutoModelForMaskedLM loads."
            )
        if tile_columns is not None and tile_columns < 1:
            raise UserError(f"tile_columns is {tile_columns}; it must be at least 1.")
        use_cpu_dropout(model)
        self.decoder_name = next(name for name, module in model.named_modules() if module is decoder)
        with packing.evaluation_mode(model), torch.no_grad():
            inputs = packing.probe(model, padding_id).padded(padding_id)
            logits = model(**inputs).logits
            model.set_submodule(self.decoder_name, nn.Identity())
            self._check_head(model, decoder, inputs, logits)
        self.model, self.decoder = model, decoder
        self.padding_id, self.tile_columns = padding_id, tile_columns
        self.pooling: Pooling = pooling
        self.activation: Activation = activation
        self.packed = packed and self._use_packed_attention()
        self._first_position = packing.position_offset(model)
        self.grafted = False

    @staticmethod
    def _check_head(model: PreTrainedModel, decoder: nn.Linear, inputs: dict[str, Tensor], logits: Tensor) -> None:
        name, real = type(model).__name__, inputs["attention_mask"].bool()
        logits = logits[real]
        if not logits.isfinite().all():
            raise UserError(f"The logits of {name} are not finite, so its weights are damaged; get another copy of it.")
        try:
            same = packing.is_same(decoder(model(**inputs).logits[real]), logits)
        except (AttributeError, RuntimeError, TypeError):  # the head needs more of the decoder than its output
            same = False
        if not same:
            raise UserError(
                f"{name} makes more of its logits than hidden states times output embeddings, so they "
                "cannot be pooled in tiles; use another model, such as BERT, RoBERTa or ModernBERT."
            )

    def _use_packed_attention(self) -> bool:
        original = self.model.config._attn_implementation
        try:
            self.model.set_attn_implementation(packing.ATTENTION_NAME)
            exact = packing.packing_is_exact(self.model, self.padding_id)
        except (ValueError, KeyError, AttributeError):
            exact = False
        if not exact:
            self.model.set_attn_implementation(original or "eager")
            name = type(self.model).__name__
            logger.warning("%s does not run without padding exactly; its documents run padded, which is slower.", name)
        return exact

    @property
    def vocab_size(self) -> int:
        """Dims of a document vector."""
        return self.decoder.out_features

    @property
    def max_positions(self) -> int:
        """Tokens that the model has positions for."""
        return int(getattr(self.model.config, "max_position_embeddings", 1 << 30)) - self._first_position

    def add_bias(self) -> None:
        """Give the decoder a bias of zeros, if it has none, that is saved with the model.

        Raises:
            UserError: the model has no place for one.
        """
        if self.decoder.bias is not None:
            return
        with self.whole_model() as model:
            flag = _bias_flag(model, f"{self.decoder_name}.bias")
        if flag is None:
            raise UserError(
                f"The decoder of {type(self.model).__name__} has no bias and no setting that gives it one, so its "
                "documents cannot start with a chosen number of active dims; leave start_active_dims out or use a "
                "model such as BERT or ModernBERT with a masked-LM head."
            )
        setattr(self.model.config, flag, True)
        self.decoder.bias = nn.Parameter(self.decoder.weight.new_zeros(self.vocab_size))

    def hidden_states(self, tokens: Tokens) -> Float[Tensor, "tokens hidden"]:
        """States of all tokens as the decoder takes them."""
        if not len(tokens.input_ids):
            return self.decoder.weight.new_zeros(0, self.decoder.in_features)
        if self.packed:
            return self.model(**packing.packed_inputs(tokens, self._first_position)).logits[0]
        states = self.model(**tokens.padded(self.padding_id)).logits
        return states[tokens.text_index, tokens.positions]

    def forward(
        self, tokens: Tokens, known: Float[Tensor, "documents vocab"] | None = None
    ) -> Float[Tensor, "documents vocab"]:
        """Document vectors, dense, fp32 also under autocast; `known` if they were made before, with gradients."""
        operands = self.hidden_states(tokens), self.decoder.weight, self.decoder.bias
        return splade_pool(*operands, tokens.offsets, self.pooling, self.activation, self.tile_columns, known)

    @torch.no_grad()
    def max_logits(self, tokens: Tokens) -> Float[Tensor, "documents vocab"]:
        """Largest logit of each document and dim, before the activation; decoder bias included."""
        return max_logits(self.hidden_states(tokens), self.decoder.weight, self.decoder.bias, tokens.offsets)

    @torch.no_grad()
    def raising_tokens(self, tokens: Tokens, dims: Int64[Tensor, " dims"]) -> Int64[Tensor, " dims"]:
        """Of one document, the number of the token whose logit is the largest of all, for each of these dims."""
        return first_maximum((self.hidden_states(tokens) @ self.decoder.weight[dims].T).float())

    @contextmanager
    def whole_model(self) -> Iterator[PreTrainedModel]:
        """The transformers model with its decoder back in place, for saving and for other tools; taken out after."""
        self.model.set_submodule(self.decoder_name, self.decoder)
        try:
            yield self.model
        finally:
            self.model.set_submodule(self.decoder_name, nn.Identity())


def _bias_flag(model: PreTrainedModel, bias: str) -> str | None:
    """The setting of a model's configuration that gives it this one parameter more and no other."""
    names = {*model.state_dict(), bias}
    for flag in (name for name, value in vars(model.config).items() if "bias" in name and value is False):
        config = copy.deepcopy(model.config)
        setattr(config, flag, True)
        with torch.device("meta"):
            if set(type(model)(config).state_dict()) == names:
                return flag
    return None
