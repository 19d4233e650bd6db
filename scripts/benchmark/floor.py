"""The floor of the benchmark: the bare matrix products that a step or an encoding cannot avoid."""

import torch


class MatrixProducts:
    """The matrix products of a model, on random numbers of the right shapes."""

    def __init__(self, base: str) -> None:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(base)
        self.hidden = config.hidden_size
        self.intermediate = getattr(config, "intermediate_size", None) or config.hidden_dim
        self.num_layers, self.num_heads = config.num_hidden_layers, config.num_attention_heads
        self.vocab_size = config.vocab_size
        self.weights = {
            shape: torch.randn(shape)
            for shape in (
                (self.hidden, self.hidden),
                (self.hidden, self.intermediate),
                (self.intermediate, self.hidden),
                (self.hidden, self.vocab_size),
            )
        }

    def body(self, lengths: tuple[int, ...], backward: bool) -> None:
        """All layers and the dense layer of the head, over real tokens; attention inside each document."""
        shapes = [(self.hidden, self.hidden)] * 4
        shapes += [(self.hidden, self.intermediate), (self.intermediate, self.hidden)]
        for _ in range(self.num_layers):
            for shape in shapes:
                self._linear(sum(lengths), shape, backward)
            for length in lengths:
                self._attention(length, backward)
        self._linear(sum(lengths), (self.hidden, self.hidden), backward)

    def decoder(self, tokens: int) -> None:
        """Logits of all tokens, a tile of the vocabulary at a time into the same memory."""
        states, weight = torch.randn(tokens, self.hidden), self.weights[self.hidden, self.vocab_size]
        columns = max(512, (1 << 22) // tokens)
        for left in range(0, self.vocab_size, columns):
            torch.mm(states, weight[:, left : left + columns])

    def _linear(self, tokens: int, shape: tuple[int, int], backward: bool) -> None:
        states, weight = torch.randn(1, shape[0]).expand(tokens, -1).contiguous(), self.weights[shape]
        output = torch.mm(states, weight)
        if backward:
            torch.mm(output, weight.T)
            torch.mm(states.T, output)

    def _attention(self, length: int, backward: bool) -> None:
        query = torch.ones(self.num_heads, length, self.hidden // self.num_heads)
        for _ in range(3 if backward else 1):
            scores = torch.bmm(query, query.transpose(1, 2))
            torch.bmm(scores, query)
