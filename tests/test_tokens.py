import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from splade_lit.core.errors import UserError
from splade_lit.core.sources import resolve_source
from splade_lit.core.tokenisation import KnownWords, tokenize_documents, tokenize_queries
from splade_lit.core.tokens import PairBatch, Tokens

LISTS = [[5, 6, 7], [], [8], [9, 10]]


def test_ragged_rows():
    tokens = Tokens.from_lists(LISTS)
    assert tokens.input_ids.dtype == torch.int64
    assert tokens.lengths == (3, 0, 1, 2)
    assert tokens.offsets == (0, 3, 3, 4, 6)
    assert tokens.text_index.tolist() == [0, 0, 0, 2, 3, 3]
    assert tokens.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert len(tokens) == 4
    assert [text.tolist() for text in tokens] == LISTS
    assert all(isinstance(offset, int) for offset in tokens.offsets)


@pytest.mark.parametrize("lists", [[], [[]], [[], []]])
def test_nothing_to_hold(lists):
    tokens = Tokens.from_lists(lists)
    assert len(tokens) == len(lists)
    assert tokens.offsets == (0,) * (len(lists) + 1)
    assert tokens.text_index.shape == tokens.positions.shape == (0,)
    assert tokens.padded(0)["input_ids"].shape == (len(lists), 0)
    assert [text.tolist() for text in tokens] == lists


def test_arrays_of_any_integer_type():
    types = (np.int32, np.uint16, np.int64, np.uint32)
    arrays = [np.array(ids, dtype=dtype) for ids, dtype in zip(LISTS, types, strict=True)]
    assert torch.equal(Tokens.from_lists(arrays).input_ids, Tokens.from_lists(LISTS).input_ids)


def test_padded():
    input_ids, attention_mask = Tokens.from_lists(LISTS).padded(1).values()
    assert input_ids.tolist() == [[5, 6, 7], [1, 1, 1], [8, 1, 1], [9, 10, 1]]
    assert attention_mask.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert input_ids.dtype == attention_mask.dtype == torch.int64


def test_batches_move_whole():
    tokens = Tokens.from_lists(LISTS)
    batch = PairBatch(tokens, Tokens.from_lists([[1]]), torch.tensor([[0, 0]])).to("meta")
    assert batch.queries.input_ids.device.type == batch.documents.input_ids.device.type == "meta"
    assert batch.queries.lengths == tokens.lengths
    assert batch.queries.text_index.device.type == batch.queries.positions.device.type == "meta"


def test_documents_have_special_tokens_and_a_limit(tiny_tokenizer):
    cls, sep = tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id
    short, empty, long = tokenize_documents(tiny_tokenizer, ["the song", "", "music " * 100], 10)
    assert short[0] == empty[0] == long[0] == cls
    assert short[-1] == empty[-1] == long[-1] == sep
    assert [len(short), len(empty), len(long)] == [4, 2, 10]
    assert short.dtype == np.int32
    assert tokenize_documents(tiny_tokenizer, [], 10) == []


def test_queries_are_cut_by_tokens_not_by_distinct_ones(tiny_tokenizer):
    vocabulary = tiny_tokenizer.get_vocab()
    (ids,) = tokenize_queries(tiny_tokenizer, ["the the the song river"], 4)
    assert set(ids) == {vocabulary["the"], vocabulary["song"]}
    assert tokenize_queries(tiny_tokenizer, [], 4) == []


def token_ids(words: KnownWords, texts: list[str]) -> list[list[int]]:
    return [np.frombuffer(ids, np.int32).tolist() for ids in words.token_ids(texts)]


PIECES = ["the", "song", "Éa", "é", "[SEP]", "[SEP", "[UNK]", "[PAD]", "[MASK]", "don't", "日本", "x" * 120]
PIECES += [" ", "  ", "\t", "\n", "\x1f", "\x00", "\u00a0", "\u3000"]


@given(texts=st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=8).map("".join), max_size=6))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_known_words_give_the_tokens_of_whole_texts(tiny_tokenizer, texts):
    engine = tiny_tokenizer.backend_tokenizer
    engine.no_truncation()
    expected = [engine.encode(text, add_special_tokens=False).ids for text in texts]
    words = KnownWords(tiny_tokenizer)
    assert token_ids(words, texts) == expected
    assert token_ids(words, texts[::-1]) == expected[::-1]  # from memory


def test_many_new_words_at_once_are_told_apart(tiny_tokenizer):
    vocabulary = tiny_tokenizer.get_vocab()
    cut_id, cut = KnownWords(tiny_tokenizer)._cut
    texts = [f"song{i} the{i} {cut if i == 300 else 'river'}" for i in range(500)]
    engine = tiny_tokenizer.backend_tokenizer
    engine.no_truncation()
    expected = [encoding.ids for encoding in engine.encode_batch_fast(texts, add_special_tokens=False)]
    assert token_ids(KnownWords(tiny_tokenizer), texts) == expected
    assert [i for i, ids in enumerate(expected) if cut_id in ids] == [300]
    assert vocabulary[cut] == cut_id


def test_words_are_forgotten_when_there_are_too_many(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(KnownWords, "_MAX_WORDS", 3)
    words, texts = KnownWords(tiny_tokenizer), ["the song", "river of music", "a the", "song of"]
    expected = [KnownWords(tiny_tokenizer).token_ids([text])[0] for text in texts]
    for _ in range(3):
        assert [words.token_ids([text])[0] for text in texts] == expected
        assert len(words._known) <= 3 + 3


@pytest.mark.parametrize("change", ["pre_tokenizer", "normalizer", "added"])
def test_tokenizers_that_look_past_spaces_get_whole_texts(tiny_tokenizer_dir, change):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    if change == "pre_tokenizer":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("_")
    elif change == "normalizer":
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace("the song", "music")
    else:
        tokenizer.add_tokens(["the song"])
    engine, text = tokenizer.backend_tokenizer, "of the song river"
    expected = engine.encode(text, add_special_tokens=False).ids
    assert token_ids(KnownWords(tokenizer), [text]) == [expected]
    assert [id for word in text.split() for id in engine.encode(word, add_special_tokens=False).ids] != expected


def test_what_a_tokenizer_was_used_for_before_does_not_matter(tiny_tokenizer):
    # sentence-transformers leaves padding and truncation switched on in the tokenizer that it shares.
    expected = tokenize_documents(tiny_tokenizer, ["the song", "music " * 30], 64)
    tiny_tokenizer(["the", "music " * 50], padding=True, truncation=True, max_length=5)
    again = tokenize_documents(tiny_tokenizer, ["the song", "music " * 30], 64)
    assert [ids.tolist() for ids in again] == [ids.tolist() for ids in expected]


def test_sources_pass_through_but_for_packages_and_home(monkeypatch, tmp_path):
    assert resolve_source("owner/name") == "owner/name"
    assert resolve_source("./folder") == "./folder"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_source("~/model") == str(tmp_path / "model")


def test_packages_resolve_to_their_folder(monkeypatch, tmp_path):
    (tmp_path / "carrier_of_models" / "model").mkdir(parents=True)
    (tmp_path / "carrier_of_models" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_source("package:carrier_of_models/model") == str(tmp_path / "carrier_of_models" / "model")
    with pytest.raises(UserError, match="has no folder 'other'"):
        resolve_source("package:carrier_of_models/other")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:no_such_carrier/model", "pip install no-such-carrier"),
        ("package:", "names no package"),
        ("package:../model", "names no package"),
        ("package:a.b/model", "names no package"),
        ("package:errno/model", "no package 'errno'"),
    ],
)
def test_bad_sources_are_told(source, message):
    with pytest.raises(UserError, match=message) as error:
        resolve_source(source)
    assert "\n" not in str(error.value)
