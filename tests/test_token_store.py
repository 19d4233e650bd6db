"""The store of token ids: tokenised once, whole or not there, and what is read from it."""

import logging
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from splade_lit.core.tokenisation import tokenize_documents
from splade_lit.core.tokens import Tokens
from splade_lit.data.token_store import TokenStore, cached_token_store, tokenizer_fingerprint

TEXTS = ["3 1 4", "", "1 5 1", "9", "", "2 6 5 3 5"]
RAGGED = st.lists(st.lists(st.integers(0, 20), max_size=6), max_size=12)


def word_ids(texts: Sequence[str]) -> list[np.ndarray]:
    """Words are their own ids."""
    return [np.array(text.split(), dtype=np.int32) for text in texts]


def batches(texts: Sequence[str], size: int = 4) -> Iterable[Sequence[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def never(texts: Sequence[str]) -> list[np.ndarray]:
    raise AssertionError("tokenised again")


def cached(folder: Path, tokenize=word_ids, vocab_size: int = 100, key: str = "key") -> TokenStore:
    return cached_token_store(lambda: batches(TEXTS), tokenize, vocab_size, folder, key)


def in_memory(token_ids: Sequence[Sequence[int]], vocab_size: int = 100) -> TokenStore:
    texts = [" ".join(map(str, ids)) for ids in token_ids]
    return TokenStore.build(batches(texts), word_ids, vocab_size)


def as_lists(store: TokenStore) -> list[list[int]]:
    return [store[row].tolist() for row in range(len(store))]


def expected() -> list[list[int]]:
    return [ids.tolist() for ids in word_ids(TEXTS)]


def test_tokenised_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = cached(tmp_path / "new" / "folder")
    again = cached(tmp_path / "new" / "folder", tokenize=never)
    assert as_lists(first) == as_lists(again) == expected()
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["key.tokens"]
    with pytest.raises(AssertionError, match="tokenised again"):
        cached(tmp_path / "new" / "folder", tokenize=never, key="other")
    assert not caplog.messages


def test_the_file_is_mapped_not_read_and_others_may_read_it(tmp_path: Path) -> None:
    store = cached(tmp_path)
    base = store.input_ids
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    assert not store.input_ids.flags.writeable
    assert stat.S_IMODE((tmp_path / "key.tokens").stat().st_mode) == 0o644


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
@pytest.mark.parametrize("path", [None, "file"])
def test_two_or_four_bytes_a_token(tmp_path: Path, vocab_size: int, dtype: type, path: str | None) -> None:
    largest = vocab_size - 1
    token_ids = [[0, largest], [], [largest, 7, largest]]
    texts = [" ".join(map(str, ids)) for ids in token_ids]
    store = TokenStore.build(batches(texts, 2), word_ids, vocab_size, path and tmp_path / path)
    assert store.input_ids.dtype == dtype
    assert as_lists(store) == token_ids
    assert store.gather(np.array([2, 0])).input_ids.tolist() == [largest, 7, largest, 0, largest]
    frequencies = store.document_frequencies(np.arange(3), vocab_size)
    assert {token: frequencies[token] for token in np.flatnonzero(frequencies)} == {0: 1, 7: 1, largest: 2}


@pytest.mark.parametrize(
    "damage",
    {
        "cut": lambda data: data[:-9],
        "cut to less than a footer": lambda data: data[:5],
        "empty": lambda data: b"",
        "one bit of a token": lambda data: bytes([data[0] ^ 1]) + data[1:],
        "one bit of an offset": lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        "one bit of the checksum": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        "zeros": lambda data: bytes(len(data)),
        "more than was written": lambda data: data + b"12345678",
        "something else": lambda data: b"not a store of tokens, but more than a footer long",
    }.items(),
    ids=lambda item: item[0],
)
def test_a_damaged_cache_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage) -> None:
    cached(tmp_path)
    path = tmp_path / "key.tokens"
    whole = path.read_bytes()
    path.write_bytes(damage[1](whole))
    with caplog.at_level(logging.WARNING):
        assert as_lists(cached(tmp_path)) == expected()
    assert len(caplog.messages) == 1
    assert f"{path} is not whole and is built again" in caplog.messages[0]
    assert path.read_bytes() == whole
    cached(tmp_path, tokenize=never)


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def fails_late(texts: Sequence[str]) -> list[np.ndarray]:
        if "9" in texts:
            return word_ids(texts)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, tokenize=fails_late)
    assert list(tmp_path.iterdir()) == []
    assert as_lists(cached(tmp_path)) == expected()


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "tokens"
    with caplog.at_level(logging.WARNING):
        queries, documents = cached(folder), cached(folder, key="documents")
    assert as_lists(queries) == as_lists(documents) == expected()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"Texts and tokens are kept in memory: {folder.parent} cannot be written (")


@pytest.mark.parametrize("texts", [[], ["", "", ""]])
def test_nothing_to_hold(tmp_path: Path, texts: list[str]) -> None:
    for path in (None, tmp_path / "file"):
        store = TokenStore.build(batches(texts), word_ids, 100, path)
        assert as_lists(store) == [[] for _ in texts]
        assert store.gather(np.arange(len(texts))).lengths == (0,) * len(texts)
        assert not store.document_frequencies(np.arange(len(texts)), 100).any()


@settings(deadline=None, max_examples=100)
@given(token_ids=RAGGED, data=st.data())
def test_gather_is_one_text_after_another(token_ids: list[list[int]], data: st.DataObject) -> None:
    store = in_memory(token_ids)
    rows = data.draw(st.lists(st.integers(0, len(token_ids) - 1), max_size=20)) if token_ids else []
    gathered = store.gather(np.array(rows, dtype=np.int64))
    naive = Tokens.from_lists([token_ids[row] for row in rows])
    assert gathered.lengths == naive.lengths
    assert gathered.input_ids.dtype == naive.input_ids.dtype
    assert gathered.input_ids.tolist() == naive.input_ids.tolist()


@settings(deadline=None, max_examples=100)
@given(token_ids=RAGGED, vocab_size=st.integers(1, 30), data=st.data())
def test_document_frequencies_count_texts(token_ids: list[list[int]], vocab_size: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(token_ids) - 1), max_size=20)) if token_ids else []
    naive = [sum(token in token_ids[row] for row in rows) for token in range(vocab_size)]
    frequencies = in_memory(token_ids).document_frequencies(np.array(rows, dtype=np.int64), vocab_size)
    assert frequencies.tolist() == naive
    assert frequencies.dtype == np.int64


def test_many_texts_from_a_real_tokenizer(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [f"the song of {number} rivers " * (number % 7) for number in range(5000)]
    store = TokenStore.build(
        batches(texts, 1000),
        lambda batch: tokenize_documents(tiny_tokenizer, batch, 20),
        len(tiny_tokenizer),
        tmp_path / "store",
    )
    naive = tokenize_documents(tiny_tokenizer, texts, 20)
    assert len(store) == 5000
    assert all(np.array_equal(store[row], ids) for row, ids in enumerate(naive))
    rows = np.random.default_rng(0).permutation(5000)[:700]
    assert store.gather(rows).input_ids.tolist() == np.concatenate([naive[row] for row in rows]).tolist()
    counted = np.bincount(np.concatenate([np.unique(naive[row]) for row in rows]), minlength=len(tiny_tokenizer))
    assert store.document_frequencies(rows, len(tiny_tokenizer)).tolist() == counted.tolist()


def test_fingerprints_of_tokenizers(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    def load(**settings: object) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(tiny_tokenizer_dir, **settings)

    tokenizer, original = load(), tokenizer_fingerprint(load())
    tokenizer(["the song", "the"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == original, "what it was used for counts"
    tokenizer.save_pretrained(tmp_path / "copy")
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path / "copy")) == original, "where it lies counts"

    tokenizer.add_tokens(["clowns"])
    assert tokenizer_fingerprint(tokenizer) != original, "an added token does not count"
    assert tokenizer_fingerprint(load(truncation_side="left")) != original, "the side that is cut does not count"
