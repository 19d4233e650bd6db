"""Token ids of many texts in one file on disk, tokenised once and read through a memory map."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numba
import numpy as np
import torch
import xxhash
from transformers import PreTrainedTokenizerBase

from splade_lit.core.files import whole_file
from splade_lit.core.text import warn_once
from splade_lit.core.tokens import Tokens

FOOTER = np.dtype([("texts", "<u8"), ("tokens", "<u8"), ("bytes_per_token", "<u8"), ("checksum", "<u8")])

Tokenize = Callable[[Sequence[str]], list[np.ndarray]]

logger = logging.getLogger(__name__)


class TokenStore:
    """The token ids of texts, one after another, with the offsets that cut them.

    Attributes:
        input_ids: `[tokens]`, uint16 or int32, memory-mapped where the store is a file.
        offsets: int64 `[texts + 1]`; text i lies at `offsets[i]:offsets[i + 1]`.
    """

    def __init__(self, input_ids: np.ndarray, offsets: np.ndarray) -> None:
        self.input_ids = input_ids
        self.offsets = offsets

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """The ids of one text, a view."""
        return self.input_ids[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """int64: tokens of each of these texts."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def gather(self, rows: np.ndarray) -> Tokens:
        """The ids of these texts, in this order."""
        starts, lengths = self.offsets[rows], self.lengths(rows)
        # All tokens of a text lie at the same distance from their places in the result.
        moves = starts - (np.cumsum(lengths) - lengths)
        places = np.arange(lengths.sum()) + np.repeat(moves, lengths)
        return Tokens(torch.from_numpy(self.input_ids[places].astype(np.int64)), tuple(lengths.tolist()))

    def document_frequencies(self, rows: np.ndarray, vocab_size: int) -> np.ndarray:
        """In how many of these texts each id occurs, int64 `[vocab_size]`.

        A row that is given twice counts twice. Ids of `vocab_size` and above are not counted.
        """
        return _document_frequencies(self.input_ids, self.offsets, np.asarray(rows), vocab_size)

    @classmethod
    def open(cls, path: Path) -> "TokenStore":
        """A store that was written to a file; an OSError if it cannot be read, a ValueError if it is not whole."""
        data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        body, tail = data[: -FOOTER.itemsize], data[-FOOTER.itemsize :]
        if len(tail) < FOOTER.itemsize:
            raise ValueError("the file is too short")
        texts, tokens, bytes_per_token, checksum = (int(number) for number in tail.view(FOOTER)[0])
        dtype = np.dtype(np.uint16 if bytes_per_token == 2 else np.int32)
        cut = tokens * dtype.itemsize
        if len(body) != cut + (texts + 1) * 8 or xxhash.xxh3_64_intdigest(body.data) != checksum:
            raise ValueError("the checksum does not match")
        # Copied, because 64-bit numbers need an address that is a multiple of 8.
        return cls(body[:cut].view(dtype), np.frombuffer(body[cut:].tobytes(), dtype=np.int64))

    @classmethod
    def build(
        cls, batches: Iterable[Sequence[str]], tokenize: Tokenize, vocab_size: int, path: Path | None = None
    ) -> "TokenStore":
        """Tokenise batches of texts into a file, or into memory where the path is None; all ids are below `vocab_size`.

        An OSError says that the file cannot be written.
        """
        dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)
        lengths = [0]

        def token_ids() -> Iterator[np.ndarray]:
            for ids in map(tokenize, batches):
                lengths.extend(map(len, ids))
                yield np.concatenate([np.empty(0, dtype), *ids]).astype(dtype)

        if path is None:
            input_ids = np.concatenate([np.empty(0, dtype), *token_ids()])
            return cls(input_ids, np.cumsum(lengths, dtype=np.int64))
        checksum = xxhash.xxh3_64()
        with whole_file(path) as temporary, temporary.open("wb") as file:
            for ids in token_ids():
                checksum.update(ids.data)
                file.write(ids.data)
            offsets = np.cumsum(lengths, dtype=np.int64)
            checksum.update(offsets.data)
            footer = (len(offsets) - 1, offsets[-1], dtype.itemsize, checksum.intdigest())
            file.write(offsets.tobytes() + np.array([footer], FOOTER).tobytes())
        return cls.open(path)


def cached_token_store(
    batches: Callable[[], Iterable[Sequence[str]]], tokenize: Tokenize, vocab_size: int, folder: Path, key: str
) -> TokenStore:
    """The store of `key`, which names all that the ids depend on, in `folder`; built if it is missing or damaged.

    If the folder cannot be written, a warning says so and the store is kept in memory. `batches` gives all texts at
    each call.
    """
    path = folder / f"{key}.tokens"
    try:
        return TokenStore.open(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        logger.warning("%s is not whole and is built again: %s.", path, error)
    try:
        return TokenStore.build(batches(), tokenize, vocab_size, path)
    except OSError as error:
        warn_once(f"Texts and tokens are kept in memory: {folder.parent} cannot be written ({error.strerror}).")
    return TokenStore.build(batches(), tokenize, vocab_size)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash that is equal for tokenizers that give the same ids, whatever truncation and padding they did last."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        description = json.loads(backend.to_str())
        description["truncation"] = description["padding"] = None
        description["truncation_side"] = tokenizer.truncation_side
    else:
        description = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
        description["settings"] = {name: str(value) for name, value in tokenizer.init_kwargs.items()}
    return xxhash.xxh3_64_hexdigest(json.dumps(description, sort_keys=True).encode())


@numba.njit(cache=True)
def _document_frequencies(input_ids: np.ndarray, offsets: np.ndarray, rows: np.ndarray, vocab_size: int) -> np.ndarray:
    frequencies = np.zeros(vocab_size, dtype=np.int64)
    last_text = np.full(vocab_size, -1, dtype=np.int64)  # in which each id was seen last
    for text, row in enumerate(rows):
        for token in input_ids[offsets[row] : offsets[row + 1]]:
            if token < vocab_size and last_text[token] != text:
                last_text[token] = text
                frequencies[token] += 1
    return frequencies
