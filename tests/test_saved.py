"""Saved models: what is written is read again, whole or not at all, and what is damaged or foreign is told so."""

import json
import os
import pickle
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from splade_lit import AsymmetricSparseEncoder, UserError

TEXTS = ["the song of the river", "", "who wrote the book of the year", "heart disease " * 40]
QUERY, DOCUMENT, POOLING = "query_0_SparseStaticEmbedding", "document_0_MLMTransformer", "document_1_SpladePooling"


@pytest.fixture
def saved(encoder, tmp_path) -> Path:
    encoder.save(tmp_path / "model")
    return tmp_path / "model"


def vectors(encoder: AsymmetricSparseEncoder) -> torch.Tensor:
    return torch.cat([encoder.encode_query(TEXTS).to_dense(), encoder.encode_document(TEXTS).to_dense()])


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all files of a folder, hidden ones too, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(source: str | Path, match: str = "") -> None:
    """Loading ends with one clear sentence."""
    with pytest.raises(UserError, match=match) as caught:
        AsymmetricSparseEncoder.load(source)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert sentence.endswith((".", ")"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_query_tokens": 3, "max_document_tokens": 7},
        {"prompts": {"query": "who is ", "document": "musical: ", "film": "film "}, "max_active_dims": 6},
        {"pooling": "sum", "activation": "log1p_relu"},
        {"architecture": "roberta"},
        {"architecture": "modernbert"},
    ],
    ids=str,
)
def test_round_trip(make_encoder, tmp_path, settings):
    encoder = make_encoder(**settings)
    encoder.save(tmp_path / "model")
    loaded = AsymmetricSparseEncoder.load(tmp_path / "model")
    assert torch.equal(vectors(loaded), vectors(encoder))
    for name in ("max_query_tokens", "max_document_tokens", "prompts", "max_active_dims"):
        assert getattr(loaded, name) == getattr(encoder, name)
    assert (loaded.document.pooling, loaded.document.activation) == (
        encoder.document.pooling,
        encoder.document.activation,
    )
    assert loaded.document.packed
    assert not loaded.training
    if settings.get("architecture") != "modernbert":  # transformers gives it a tokenizer class of its own
        loaded.save(tmp_path / "again")
        assert contents(tmp_path / "again") == contents(tmp_path / "model")


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_table_stays_frozen(encoder, tmp_path, frozen):
    encoder.idf_weights.requires_grad_(not frozen)
    encoder.save(tmp_path / "model")
    assert AsymmetricSparseEncoder.load(tmp_path / "model").query.frozen is frozen


def test_what_is_trained_is_saved(encoder, saved, tmp_path):
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.01)
    encoder.save(saved)
    assert torch.equal(vectors(AsymmetricSparseEncoder.load(saved)), vectors(encoder))


def test_half_precision_is_read_as_fp32(encoder, saved):
    path = saved / DOCUMENT / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    loaded = AsymmetricSparseEncoder.load(saved)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(vectors(loaded), vectors(encoder), rtol=0.02, atol=0.02)


def write_idf(path: Path, encoder: AsymmetricSparseEncoder) -> dict[str, float]:
    tokens = encoder.tokenizer.convert_ids_to_tokens(list(range(10, encoder.vocab_size)))
    table = {token: round(0.1 + i / 50, 3) for i, token in enumerate(tokens)}
    path.write_text(json.dumps(table | {"not a token": 9.0}))
    return table


def assert_weights(encoder: AsymmetricSparseEncoder, table: dict[str, float]) -> None:
    tokens = encoder.tokenizer.convert_ids_to_tokens(range(encoder.vocab_size))
    weights = dict(zip(tokens, encoder.idf_weights.tolist(), strict=True))
    assert {token: weight for token, weight in weights.items() if weight} == pytest.approx(table)


def test_masked_lm_with_an_idf_json(encoder, tmp_path):
    folder = tmp_path / "model"
    with encoder.document.whole_model() as model:
        model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    table = write_idf(folder / "idf.json", encoder)
    loaded = AsymmetricSparseEncoder.load(folder)
    assert_weights(loaded, table)
    assert torch.equal(loaded.encode_document(TEXTS).to_dense(), encoder.encode_document(TEXTS).to_dense())


def test_masked_lm_alone(encoder, tmp_path):
    folder = tmp_path / "model"
    with encoder.document.whole_model() as model:
        model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    loaded = AsymmetricSparseEncoder.load(folder)
    assert loaded.idf_weights.unique().tolist() == [1.0]
    assert torch.equal(loaded.encode_document(TEXTS).to_dense(), encoder.encode_document(TEXTS).to_dense())


@pytest.mark.parametrize("place", [QUERY, "."])
def test_router_whose_query_weights_are_an_idf_json(encoder, saved, place, monkeypatch):
    table = write_idf(saved / place / "idf.json", encoder)
    (saved / QUERY / "model.safetensors").unlink()
    (saved / QUERY / "config.json").write_text(json.dumps({"frozen": True, "path": "idf.json"}))
    loaded = AsymmetricSparseEncoder.load(saved)
    assert_weights(loaded, table)
    assert loaded.query.frozen
    peer = pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(saved / place)  # where sentence-transformers looks for it
    queries = peer.SparseEncoder(str(saved), device="cpu").encode_query(TEXTS)
    unknown = encoder.tokenizer.unk_token_id  # it gives the weight of words that are no tokens to this one
    ours, expected = loaded.encode_query(TEXTS).to_dense(), queries.to_dense()
    ours[:, unknown] = expected[:, unknown] = 0
    assert torch.equal(ours, expected)


def test_saving_anew_keeps_what_else_lies_there(encoder, saved):
    (saved / "README.md").write_text("a model card")
    (saved / "onnx").mkdir()
    (saved / "onnx" / "model.onnx").write_bytes(b"export")
    (saved / DOCUMENT / "stale.txt").write_text("of the model before")
    encoder.idf_weights.data.fill_(0.5)
    before = contents(saved)
    encoder.save(saved)
    after = contents(saved)
    assert before.keys() - after.keys() == {f"{DOCUMENT}/stale.txt"}
    assert after.keys() <= before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {f"{QUERY}/model.safetensors"}
    assert os.listdir(saved.parent) == ["model"]  # nothing temporary stays behind
    assert AsymmetricSparseEncoder.load(saved).idf_weights.unique().tolist() == [0.5]


@pytest.mark.parametrize(
    ("part", "change"),
    [("normalizer", {"lowercase": False}), ("pre_tokenizer", {"type": "Whitespace"}), ("model", {"unk_token": "of"})],
)
def test_queries_with_a_tokenizer_of_their_own_are_refused(saved, part, change):
    path, config = saved / QUERY / "tokenizer.json", saved / QUERY / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    # BERT's own class builds its tokenizer anew from the vocabulary.
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    path.write_text(json.dumps(settings | {part: settings[part] | change}))
    assert_refused(saved, rf"another tokenizer for queries than for documents \(they differ in {part}\)")


def test_query_tokenizers_may_be_written_in_another_way(saved, encoder):
    path = saved / QUERY / "tokenizer.json"
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation": truncation, "post_processor": None}))
    assert torch.equal(vectors(AsymmetricSparseEncoder.load(saved)), vectors(encoder))
    path.write_text("{")
    assert_refused(saved, "is damaged or no fast one")
    path.unlink()
    assert torch.equal(vectors(AsymmetricSparseEncoder.load(saved)), vectors(encoder))


def test_tokenizers_do_not_keep_the_limit_of_their_last_call(make_encoder, tmp_path):
    encoder = make_encoder(max_query_tokens=2, max_document_tokens=5)
    vectors(encoder)
    encoder.save(tmp_path / "model")
    for part in (QUERY, DOCUMENT):  # as search engines read it
        tokenizer = Tokenizer.from_file(str(tmp_path / "model" / part / "tokenizer.json"))
        assert len(tokenizer.encode("river " * 30).ids) == 32


def test_files_are_readable_for_others(saved):
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (saved, *saved.rglob("*")))


def test_saving_over_something_else_is_refused(encoder, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("text")
    before = contents(tmp_path)
    for name in ("thesis", "file", "file/model"):
        with pytest.raises(UserError, match="folder"):
            encoder.save(tmp_path / name)
    assert contents(tmp_path) == before


@contextmanager
def small_files_only(size: int) -> Iterator[None]:
    """Writing beyond this many bytes of a file fails, as on a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [10, 500, 20_000, 100_000])
def test_failed_save_leaves_what_was_there(encoder, saved, size):
    before = contents(saved)
    encoder.idf_weights.data.fill_(0.5)
    with small_files_only(size), pytest.raises(UserError, match="cannot be saved"):
        encoder.save(saved)
    assert contents(saved) == before
    assert os.listdir(saved.parent) == ["model"]
    with small_files_only(size), pytest.raises(UserError, match="cannot be saved"):
        encoder.save(saved.parent / "new")
    assert os.listdir(saved.parent) == ["model"]
    encoder.encode_document(TEXTS)  # the model is whole, its decoder where it belongs


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_leaves_what_was_there(make_encoder, small_disk):
    encoder = make_encoder()
    encoder.save(small_disk / "model")
    before = contents(small_disk)
    with pytest.raises(UserError, match="cannot be saved"):
        encoder.save(small_disk / "model")
    assert contents(small_disk) == before


def test_missing_and_foreign_sources(tmp_path, make_masked_lm, tiny_tokenizer):
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "nowhere", "not a folder")
    assert_refused(tmp_path / "file", "not a folder")
    assert_refused(tmp_path / "empty", "neither modules.json nor config.json")
    assert_refused("owner/model", "Hub cannot be reached")
    assert_refused("a sentence, not a name", "not a folder")
    assert_refused("package:no_such_package/model", "no package")


def test_models_of_another_kind(make_masked_lm, tiny_tokenizer, tmp_path):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer, SparseEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    model = make_masked_lm("bert", len(tiny_tokenizer))
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    masked_lm = Transformer(str(tmp_path / "base"), transformer_task="fill-mask")
    symmetric = SparseEncoder(modules=[masked_lm, SpladePooling("max")], device="cpu")
    symmetric.save_pretrained(str(tmp_path / "symmetric"), create_model_card=False)
    assert_refused(tmp_path / "symmetric", "made of Transformer, SpladePooling; only asymmetric")

    body = Transformer(str(tmp_path / "base"))
    dense = SentenceTransformer(modules=[body, Pooling(32)], device="cpu")
    dense.save_pretrained(str(tmp_path / "dense"), create_model_card=False)
    assert_refused(tmp_path / "dense", "made of Transformer, Pooling; only asymmetric")

    model.bert.save_pretrained(tmp_path / "encoder")
    tiny_tokenizer.save_pretrained(tmp_path / "encoder")
    assert_refused(tmp_path / "encoder", "no masked-LM head")


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def save_weight(path: Path, weight: torch.Tensor, name: str = "weight") -> None:
    save_file({name: weight}, path)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not JSON": (lambda f: (f / "modules.json").write_text("<html>"), "modules.json is not JSON"),
    "no router": (lambda f: (f / "router_config.json").unlink(), "router_config.json is missing"),
    "no query folder": (lambda f: shutil.rmtree(f / QUERY), "missing"),
    "no query weights": (lambda f: (f / QUERY / "model.safetensors").unlink(), "has no weights"),
    "no document weights": (lambda f: (f / DOCUMENT / "model.safetensors").unlink(), "has no weights"),
    "no tokenizer": (lambda f: (f / DOCUMENT / "tokenizer.json").unlink(), "tokenizer"),
    "no config": (lambda f: (f / DOCUMENT / "config.json").unlink(), "no config.json"),
    "other name": (lambda f: save_weight(f / QUERY / "model.safetensors", torch.ones(5), "idf"), "damaged"),
    "too many weights": (lambda f: save_weight(f / QUERY / "model.safetensors", torch.ones(999)), r"\[999\]"),
    "matrix": (lambda f: save_weight(f / QUERY / "model.safetensors", torch.ones(9, 3)), r"\[9, 3\]"),
    "not numbers": (lambda f: save_weight(f / QUERY / "model.safetensors", torch.full((9,), torch.nan)), "not finite"),
    "git LFS": (lambda f: (f / DOCUMENT / "model.safetensors").write_text("version https://git-lfs"), "damaged"),
    "other pooling": (lambda f: change_json(f / POOLING / "config.json", pooling_strategy="mean"), "'mean'"),
    "other activation": (lambda f: change_json(f / POOLING / "config.json", activation_function="elu"), "'elu'"),
    "other size": (lambda f: change_json(f / DOCUMENT / "config.json", hidden_size=64), "do not fit"),
    "other kind": (lambda f: change_json(f / DOCUMENT / "config.json", model_type="gpt2"), "gpt2"),
    "unknown kind": (lambda f: change_json(f / DOCUMENT / "config.json", model_type="zzz"), "config.json"),
    "no query route": (
        lambda f: change_json(f / "router_config.json", structure={"document": [DOCUMENT, POOLING]}),
        "route of nothing",
    ),
    "other prompts": (lambda f: change_json(f / "config_sentence_transformers.json", prompts=["who"]), "laid out"),
    "no text": (lambda f: change_json(f / "config_sentence_transformers.json", prompts={"document": 5}), "is 5"),
    "endless": (lambda f: change_json(f / QUERY / "tokenizer_config.json", model_max_length=1e999), "is inf"),
    "other limit": (
        lambda f: change_json(f / "config_sentence_transformers.json", max_active_dims=0),
        "max_active_dims",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(saved, damage):
    break_it, match = DAMAGES[damage]
    break_it(saved)
    assert_refused(saved, match)


def test_any_damaged_file_is_told_or_harmless(encoder, saved, tmp_path):
    expected = vectors(encoder)
    harmless = total = 0
    for path in [path for path in saved.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        damages = [b"", whole[: len(whole) // 2], b"\x00\xff" * 50, None]
        damages += [b"[]", b"{}", b"null", b'"text"', b"[1]", b'{"a": 1}'] if path.suffix == ".json" else []
        for damage in damages:
            path.unlink() if damage is None else path.write_bytes(damage)
            with suppress(UserError):
                AsymmetricSparseEncoder.load(saved)
                harmless += 1
            path.write_bytes(whole)
            total += 1
    assert harmless < total / 3
    assert torch.equal(vectors(AsymmetricSparseEncoder.load(saved)), expected)


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "pickle"])
@pytest.mark.parametrize("part", [QUERY, DOCUMENT])
def test_nothing_is_unpickled(saved, tmp_path, part, form):
    trap = tmp_path / "trap"
    (saved / part / "model.safetensors").unlink()
    path = saved / part / "pytorch_model.bin"
    if form == "torch":
        torch.save({"weight": Trap(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Trap(trap)}))
    assert_refused(saved, "damaged")
    assert not trap.exists()
    torch.load(path, weights_only=False) if form == "torch" else pickle.loads(path.read_bytes())
    assert trap.exists()  # it would have sprung


@pytest.mark.parametrize("part", [QUERY, DOCUMENT])
def test_tensors_in_torchs_own_form_are_read(encoder, saved, part):
    tensors = load_file(saved / part / "model.safetensors")
    (saved / part / "model.safetensors").unlink()
    torch.save(tensors, saved / part / "pytorch_model.bin")
    assert torch.equal(vectors(AsymmetricSparseEncoder.load(saved)), vectors(encoder))
