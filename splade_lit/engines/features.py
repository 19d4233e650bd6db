"""Names of dims in engines that know features by name, and weights as they are written there."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

if TYPE_CHECKING:
    from splade_lit.encoder.query_side import QuerySide

# Elasticsearch refuses features with a dot; empty names and white space get lost in one place or another.
_REFUSED = re.compile(r"[%.\s\x00-\x1f\x7f]")


class FeatureNames:
    """A name for each dim, and the way back.

    Args:
        names: of all dims, no two alike.
        renamed: tokens that have another name than they are, with it.
    """

    def __init__(self, names: Sequence[str], renamed: Mapping[str, str] | None = None) -> None:
        self.names, self.renamed = list(names), dict(renamed or {})
        self._dims = {name: dim for dim, name in enumerate(self.names)}

    @classmethod
    def of_dims(cls, vocab_size: int) -> "FeatureNames":
        """The number of each dim, which no engine refuses.

        >>> FeatureNames.of_dims(3).names
        ['0', '1', '2']
        """
        return cls([str(dim) for dim in range(vocab_size)])

    @classmethod
    def of_tokens(cls, tokens: Sequence[str | None], escaped: bool = True) -> "FeatureNames":
        """The token of each dim, escaped unless an engine takes all of them; `%d` and its number for a dim without one.

        >>> names = FeatureNames.of_tokens(["song", ".", "", None])
        >>> names.names, names.renamed
        (['song', '%2E', '%', '%d3'], {'.': '%2E', '': '%'})
        """
        names, renamed = [], {}
        for dim, token in enumerate(tokens):
            name = f"%d{dim}" if token is None else escape(token) if escaped else token
            names.append(name)
            if token is not None and name != token:
                renamed[token] = name
        return cls(names, renamed)

    @classmethod
    def of_query_side(cls, side: "QuerySide", vocab_size: int, escaped: bool = True) -> "FeatureNames":
        """The tokens of a model's tokenizer."""
        engine = side.tokenisation.tokenizer.backend_tokenizer
        return cls.of_tokens([engine.id_to_token(dim) for dim in range(vocab_size)], escaped)

    def weights(self, dims: Iterable[int], weights: Float32[np.ndarray, " dims"]) -> dict[str, float]:
        """Name to weight of a vector."""
        return {self.names[dim]: weight for dim, weight in zip(dims, plain_floats(weights), strict=True)}

    def dim(self, name: str) -> int:
        """The dim of a name; a KeyError if it is none."""
        return self._dims[name]


def escape(token: str) -> str:
    """A token without characters that some engine refuses as a feature.

    >>> escape("."), escape("a.b"), escape("100%"), escape("song"), escape("")
    ('%2E', 'a%2Eb', '100%25', 'song', '%')
    """
    return _REFUSED.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), token) if token else "%"


def unescape(name: str) -> str:
    """The token of a name that `escape` has made.

    >>> [unescape(escape(token)) for token in (".", "100%", "", "%2E")]
    ['.', '100%', '', '%2E']
    """
    if name == "%":
        return ""
    return re.sub(r"(?:%[0-9A-F]{2})+", lambda found: bytes.fromhex(found[0].replace("%", "")).decode(), name)


def plain_floats(weights: Float32[np.ndarray, " weights"]) -> list[float]:
    """Float32 numbers as the floats with the fewest digits that become the same float32 again.

    >>> plain_floats(np.array([0.1, 2.5], np.float32))
    [0.1, 2.5]
    """
    return [float(text) for text in weights.astype(np.float32).astype(str)]
