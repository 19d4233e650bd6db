"""The query side on its own: the vectors of the whole model, without torch, from whole and from damaged files."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_runs import environment
from conftest import tiny_masked_lm
from hub_stand_in import Repository, serve
from safetensors.torch import save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, RobertaTokenizerFast

from splade_lit import AsymmetricSparseEncoder, UserError, load_query_side
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.query import IdfQueryEncoder

QUERY, DOCUMENT = "query_0_SparseStaticEmbedding", "document_0_MLMTransformer"
TEXTS = [
    "who wrote the song",
    "The THE ÉTAT the",
    "",
    " \n\t",
    "[CLS] song [SEP] [PAD] <s>",
    "zebra 😀 ∮ don't",
    "river " * 90,
]


@pytest.fixture(scope="module")
def queries(shared_data: Path) -> list[str]:
    return TEXTS + pd.read_parquet(shared_data / "qa-pairs" / "train.parquet")["query"][:500].tolist()


def byte_level(texts: Sequence[str]) -> Tokenizer:
    engine = Tokenizer(BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    engine.train_from_iterator(texts, BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet))
    return engine


def other_tokenizer(kind: str, tiny_tokenizer_dir: Path, tmp_path: Path) -> PreTrainedTokenizerBase:
    if kind == "roberta":
        names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        byte_level(TEXTS).save(str(tmp_path / "tokenizer.json"))
        return RobertaTokenizerFast.from_pretrained(tmp_path, model_max_length=64, **names)
    settings = {"cased": {"do_lower_case": False}, "left": {"truncation_side": "left"}}.get(kind, {})
    return AutoTokenizer.from_pretrained(tiny_tokenizer_dir, **settings)


def make_model(tokenizer: PreTrainedTokenizerBase, **settings: object) -> AsymmetricSparseEncoder:
    size = len(tokenizer)
    document = MlmDocumentEncoder(tiny_masked_lm("bert", size), tokenizer.pad_token_id)
    idf = torch.rand(size, generator=torch.Generator().manual_seed(0)) * 3
    idf[::7] = 0
    return AsymmetricSparseEncoder(IdfQueryEncoder(idf), document, tokenizer, **settings).eval()


def assert_same(folder: Path, queries: Sequence[str]) -> None:
    encoder, side = AsymmetricSparseEncoder.load(folder), load_query_side(folder)
    for settings in ({}, {"prompt": "song of "}, *({"prompt_name": name} for name in encoder.prompts)):
        expected = encoder.encode_query(queries, convert_to_csr=True, **settings)
        ours = side.encode(queries, **settings)
        assert ours.shape == expected.shape
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(ours, part), getattr(expected, part))
            assert getattr(ours, part).dtype == getattr(expected, part).dtype
    assert list(side.terms(queries[0]).items()) == encoder.decode(encoder.encode_query(queries[0]))


@pytest.mark.parametrize("kind", ["bert", "cased", "left", "roberta"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"max_query_tokens": 3}, {"prompts": {"query": "Who is ", "film": "film "}, "max_active_dims": 4}],
    ids=str,
)
def test_vectors_are_those_of_the_model(tiny_tokenizer_dir, tmp_path, queries, kind, settings):
    tokenizer = other_tokenizer(kind, tiny_tokenizer_dir, tmp_path)
    make_model(tokenizer, **settings).save(tmp_path / "model")
    assert_same(tmp_path / "model", queries)


@pytest.mark.parametrize("form", ["idf.json", "router with idf.json", "half", "bfloat16", "bin", "short"])
def test_every_form_of_the_table(tiny_tokenizer, tmp_path, queries, form):
    encoder, folder = make_model(tiny_tokenizer), tmp_path / "model"
    encoder.save(folder)
    weights, path = encoder.idf_weights.detach().clone(), folder / QUERY / "model.safetensors"
    tokens = tiny_tokenizer.convert_ids_to_tokens(range(len(weights)))
    table = json.dumps(dict(zip(tokens, weights.tolist(), strict=True)) | {"no token": 9.0})
    if form == "idf.json":
        shutil.move(folder / DOCUMENT, tmp_path / "plain")
        folder = tmp_path / "plain"
        (folder / "idf.json").write_text(table)
    elif form == "router with idf.json":
        path.unlink()
        (folder / "idf.json").write_text(table)
        (folder / QUERY / "config.json").write_text(json.dumps({"frozen": True, "path": "idf.json"}))
    elif form == "bin":
        path.unlink()
        torch.save({"weight": weights}, folder / QUERY / "pytorch_model.bin")
    else:
        changed = {"half": weights.half(), "bfloat16": weights.bfloat16(), "short": weights[:-5].clone()}
        save_file({"weight": changed[form]}, path)
    assert_same(folder, queries)
    assert load_query_side(folder).encode(queries).nnz > 1000


@pytest.mark.parametrize(
    "change",
    [
        {"do_lower_case": False},
        {"strip_accents": False},
        {"pad_token": "[NEW]"},
        {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": None},
        {"split_special_tokens": True},
        "no tokenizer.json",
        "no limit",
    ],
    ids=str,
)
def test_settings_beside_the_tokenizer_count(tiny_tokenizer, tmp_path, queries, change):
    folder = tmp_path / "model"
    make_model(tiny_tokenizer).save(folder)
    for part in (folder / QUERY, folder / DOCUMENT):
        path = part / "tokenizer_config.json"
        config = json.loads(path.read_text())
        if change == "no tokenizer.json":
            (part / "tokenizer.json").unlink()
            tokens = tiny_tokenizer.convert_ids_to_tokens(range(len(tiny_tokenizer)))
            (part / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
        elif change == "no limit":
            del config["model_max_length"]
        else:
            config |= change
        path.write_text(json.dumps(config))
    assert_same(folder, queries)


def test_neither_torch_nor_transformers(tiny_tokenizer, tmp_path):
    make_model(tiny_tokenizer).save(tmp_path / "model")
    code = f"""
import sys
from splade_lit import load_query_side
side = load_query_side({str(tmp_path / "model")!r})
print(side.encode("the song").nnz)
print(sorted({{"torch", "transformers", "datasets", "lightning", "numba"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["2", "[]"]


def test_queries_alone_are_enough(tiny_tokenizer, tmp_path, queries):
    encoder = make_model(tiny_tokenizer)
    encoder.save(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / DOCUMENT)
    ours = load_query_side(tmp_path / "model").encode(queries)
    np.testing.assert_array_equal(ours.toarray(), encoder.encode_query(queries, convert_to_csr=True).toarray())


def test_a_hub_id_is_looked_up_without_the_weights_of_the_transformer(tiny_tokenizer, tmp_path):
    make_model(tiny_tokenizer).save(tmp_path / "model")
    code = "from splade_lit import load_query_side; print(load_query_side('someone/tiny').terms('the song'))"
    with serve([Repository.of_folder("models", "someone/tiny", tmp_path / "model")]) as hub:
        for offline in "01":  # the second time from the cache
            changes = {"HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": offline}
            settings = {"env": environment(**changes), "capture_output": True, "text": True, "check": True}
            done = subprocess.run([sys.executable, "-c", code], **settings)
            assert done.stdout == f"{load_query_side(tmp_path / 'model').terms('the song')}\n"
    assert hub.asked(f"GET .*/{QUERY}/model.safetensors")
    assert not hub.asked(f"/{DOCUMENT}/model.safetensors")


def test_unknown_prompts_are_told(tiny_tokenizer, tmp_path):
    make_model(tiny_tokenizer).save(tmp_path / "model")
    with pytest.raises(ValueError, match="no prompt named 'film'"):
        load_query_side(tmp_path / "model").encode("song", prompt_name="film")


def test_damaged_files_are_told_or_harmless(tiny_tokenizer, tmp_path):
    folder = tmp_path / "model"
    make_model(tiny_tokenizer).save(folder)
    side = load_query_side(folder)
    harmless = total = 0
    for path in [*folder.glob("*.json"), *(folder / QUERY).iterdir(), *(folder / DOCUMENT).glob("*.json")]:
        whole = path.read_bytes()
        texts = [b"[]", b"{}", b"null", b'"text"', b"[1]", b'{"a": 1}'] if path.suffix == ".json" else []
        for damage in [b"", whole[: len(whole) // 2], b"\x00\xff" * 50, None, *texts]:
            path.unlink() if damage is None else path.write_bytes(damage)
            with suppress(UserError):
                load_query_side(folder)
                harmless += 1
            total += 1
            path.write_bytes(whole)
    assert harmless < total / 2
    np.testing.assert_array_equal(load_query_side(folder).weights, side.weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [(torch.ones(999), r"\[999\]"), (torch.ones(9, 3), r"\[9, 3\]"), (torch.full((9,), torch.nan), "not finite")],
    ids=str,
)
def test_tables_that_do_not_fit_are_refused(tiny_tokenizer, tmp_path, weights, message):
    make_model(tiny_tokenizer).save(tmp_path / "model")
    save_file({"weight": weights}, tmp_path / "model" / QUERY / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_query_side(tmp_path / "model")


def test_a_vocabulary_that_would_fill_memory_is_refused(tiny_tokenizer, tmp_path):
    folder = tmp_path / "model"
    make_model(tiny_tokenizer).save(folder)
    for path in folder.rglob("tokenizer.json"):
        content = json.loads(path.read_text())
        content["model"]["vocab"]["disease"] = 4_000_000_000
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="tokens and ids up to 4,000,000,000, so it is damaged"):
        load_query_side(folder)


def test_queries_with_a_tokenizer_of_their_own_are_refused(tiny_tokenizer, tmp_path):
    make_model(tiny_tokenizer).save(tmp_path / "model")
    other = PreTrainedTokenizerFast(tokenizer_object=byte_level(TEXTS), pad_token="<pad>")
    other.save_pretrained(tmp_path / "model" / QUERY)
    with pytest.raises(UserError, match="another tokenizer for queries than for documents"):
        load_query_side(tmp_path / "model")
