"""The floor of the benchmark: the bare matrix products that a step or an encoding cannot avoid."""

from collections.abc import Sequence

import torch
from torch import Tensor


class MatrixProducts:
    """The matrix products of a model, on random numbers of the right shapes."""

    def __init__(self, base: str) -> None:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(base)
        hidden = config.hidden_size
        intermediate = getattr(config, "intermediate_size", None) or config.hidden_dim
        self.square = torch.randn(hidden, hidden)
        self.layer = [self.square] * 4 + [torch.randn(hidden, intermediate), torch.randn(intermediate, hidden)]
        self.vocabulary = torch.randn(hidden, config.vocab_size)
        self.num_layers, self.num_heads = config.num_hidden_layers, config.num_attention_heads

    def body(self, lengths: Sequence[int], backward: bool) -> None:
        """All layers and the dense layer of the head, over real tokens; attention inside each document."""
        for _ in range(self.num_layers):
            for weight in self.layer:
                _linear(sum(lengths), weight, backward)
            for length in lengths:
                self._attention(length, backward)
        _linear(sum(lengths), self.square, backward)

    def decoder(self, tokens: int) -> None:
        """Logits of all tokens, a tile of the vocabulary at a time into the same memory."""
        states = torch.randn(tokens, len(self.vocabulary))
        for tile in self.vocabulary.split(max(512, (1 << 22) // tokens), dim=1):
            torch.mm(states, tile)

    def _attention(self, length: int, backward: bool) -> None:
        query = torch.ones(self.num_heads, length, len(self.square) // self.num_heads)
        for _ in range(3 if backward else 1):
            scores = torch.bmm(query, query.transpose(1, 2))
            torch.bmm(scores, query)


def _linear(tokens: int, weight: Tensor, backward: bool) -> None:
    states = torch.randn(1, len(weight)).expand(tokens, -1).contiguous()
    output = torch.mm(states, weight)
    if backward:
        torch.mm(output, weight.T)
        torch.mm(states.T, output)
