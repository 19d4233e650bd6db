"""What may be a base model: saved models go on from where they are; no bias, no pad token, code of its own."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import World, call, make_world, read_json
from conftest import tiny_masked_lm
from safetensors.torch import load_file, save_file
from sentence_transformers import SparseEncoder
from tiny_runs import make_data, make_trainer, save_base, write_pairs
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from splade_lit import AsymmetricSparseEncoder, UserError, evaluate, fit
from splade_lit.analysis.query_table import table_change
from splade_lit.analysis.subject import open_subject
from splade_lit.data.datamodule import PairsDataModule
from splade_lit.encoder.check_saved import check_saved
from splade_lit.encoder.masked_lm import load_masked_lm, load_tokenizer
from splade_lit.training.module import SpladeModule

QUERY, DOCUMENT = "query_0_SparseStaticEmbedding", "document_0_MLMTransformer"
TEXTS = ["the song of the river", "", "who wrote the book of the year", "heart disease " * 40]
PROMPTS = {"query": "who is ", "document": "musical: "}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer) -> World:
    return make_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)


@pytest.fixture
def saved(make_encoder, tmp_path) -> Path:
    """A saved model with nothing left at its default."""
    encoder = make_encoder(
        pooling="sum",
        activation="log1p_relu",
        max_query_tokens=9,
        max_document_tokens=20,
        prompts=PROMPTS,
        max_active_dims=60,
    )
    encoder.save(tmp_path / "saved")
    return tmp_path / "saved"


def assert_same_vectors(ours: AsymmetricSparseEncoder, expected: AsymmetricSparseEncoder, texts: Sequence[str]) -> None:
    for side in ("encode_query", "encode_document"):
        vectors = [getattr(encoder, side)(texts).to_dense() for encoder in (ours, expected)]
        torch.testing.assert_close(*vectors, rtol=1e-5, atol=1e-5)


def test_a_saved_model_goes_on_with_all_that_it_has(saved):
    loaded = AsymmetricSparseEncoder.load(saved)
    encoder = AsymmetricSparseEncoder.from_base(str(saved)).eval()
    assert_same_vectors(encoder, loaded, TEXTS)
    assert encoder.tokenisation.prompts == loaded.prompts
    assert (encoder.max_query_tokens, encoder.max_document_tokens, encoder.max_active_dims) == (9, 20, 60)
    assert (encoder.document.pooling, encoder.document.activation) == ("sum", "log1p_relu")
    changed = AsymmetricSparseEncoder.from_base(
        str(saved), idf="ones", max_query_tokens=3, max_document_tokens=30, pooling="max", activation="relu"
    )
    assert (changed.max_query_tokens, changed.max_document_tokens) == (3, 30)
    assert (changed.document.pooling, changed.document.activation) == ("max", "relu")
    assert changed.idf_weights.unique().tolist() == [1.0]
    assert changed.prompts["document"] == "musical: "


def test_a_masked_lm_with_an_idf_json_goes_on_with_it(saved, tiny_tokenizer, tmp_path):
    shutil.move(saved / DOCUMENT, tmp_path / "opensearch")
    (tmp_path / "opensearch" / "idf.json").write_text(json.dumps({"the": 0.5, "song": 3.0}))
    encoder = AsymmetricSparseEncoder.from_base(str(tmp_path / "opensearch"))
    assert encoder.encode_query("the song").to_dense().sum() == 3.5
    (tmp_path / "opensearch" / "idf.json").unlink()
    with pytest.raises(UserError, match="has no query table to go on from; set idf to ones"):
        AsymmetricSparseEncoder.from_base(str(tmp_path / "opensearch"), idf="model")


def test_training_goes_on_from_a_saved_run(world, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert call(fit.main, "--config", world.config(first)).code == 0
    base = str(first / "model")
    outcome = call(fit.main, "--config", world.config(second, {"model.base_model": base}))
    assert outcome.code == 0, outcome.err
    figures = [read_json(run / "metrics.json") for run in (first, second)]
    assert figures[1]["before"] == pytest.approx(figures[0]["after"], rel=1e-5)
    assert figures[1]["after"] != figures[1]["before"]
    output = tmp_path / "figures.json"
    assert call(evaluate.main, "--model", base, "--tasks", world.tasks, "--output", output).code == 0
    expected = {name: figures[1]["before"][name] for name in read_json(output)["model"]}
    assert read_json(output)["model"] == pytest.approx(expected, rel=1e-5)
    change = table_change(open_subject(second))
    np.testing.assert_array_equal(change.before, AsymmetricSparseEncoder.load(base).idf_weights.detach())


def test_prompts_reach_training_and_all_that_is_looked_at(saved, tmp_path, tiny_tokenizer):
    module = SpladeModule(str(saved), learning_rate=0.0)
    encoder = module.encoder
    pairs = write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer)
    settings = {name: getattr(encoder, name) for name in ("max_query_tokens", "max_document_tokens", "prompts")}
    data = make_data(encoder.tokenizer, pairs, **settings)
    make_trainer(tmp_path, 1).fit(module, data)
    who, musical = (tiny_tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("who", "musical"))
    assert all(who in query for query in data.sample_queries(20, 0))
    assert all(document[1] == musical for document in data.sample_documents(20, 0))
    row = data.train_rows[0]
    pair = data.train_pairs[0]
    assert data.queries[row].tolist() == encoder.tokenisation.queries([pair["query"]])[0].tolist()
    expected = encoder.encode_document(pair["document"], convert_to_csr=True).toarray()
    ours = encoder.encode_document_tokens([data.documents[0][row]]).toarray()
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def without_bias(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A ModernBERT whose decoder has no bias, as EuroBERT's."""
    whole = tiny_masked_lm("modernbert", len(tokenizer))
    whole.config.decoder_bias = False
    model = AutoModelForMaskedLM.from_config(whole.config)
    model.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name != "decoder.bias"})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_bias_that_is_made_is_saved(world, tmp_path, tiny_tokenizer):
    base, run = without_bias(tmp_path / "base", tiny_tokenizer), tmp_path / "run"
    changes = {"model.base_model": str(base), "model.start_active_dims": 20}
    outcome = call(fit.main, "--config", world.config(run, changes))
    assert outcome.code == 0, outcome.err
    assert AutoConfig.from_pretrained(run / "model" / DOCUMENT).decoder_bias
    output = tmp_path / "figures.json"
    assert call(evaluate.main, "--model", run / "model", "--tasks", world.tasks, "--output", output).code == 0
    after = read_json(run / "metrics.json")["after"]
    assert read_json(output)["model"] == pytest.approx({name: after[name] for name in read_json(output)["model"]})
    peer = SparseEncoder(str(run / "model"), device="cpu").encode_document(TEXTS).to_dense()
    ours = AsymmetricSparseEncoder.load(run / "model").encode_document(TEXTS).to_dense()
    torch.testing.assert_close(ours, peer, rtol=1e-4, atol=1e-4)
    checkpoint = run / "checkpoints" / "last.ckpt"
    resumed = call(fit.main, "--config", run / "config.yaml", "--ckpt_path", checkpoint, "--trainer.max_steps", 8)
    assert resumed.code == 0, resumed.err


def test_a_model_with_no_place_for_a_bias_is_refused_before_training(tiny_tokenizer, tmp_path):
    folder = save_base(tmp_path / "base", tiny_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer)
    encoder = AsymmetricSparseEncoder.from_base(str(folder))
    encoder.document.decoder.bias = None  # an architecture that has none
    with pytest.raises(UserError, match="decoder of BertForMaskedLM has no bias and no setting that gives it one"):
        encoder.document.add_bias()


def change_saved(folder: Path, part: str, name: str) -> None:
    path = folder / part / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[3] += 0.01
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: change_saved(f, DOCUMENT, "bert.encoder.layer.1.output.dense.bias"), "encoder.layer.1.output"),
        (lambda f: change_saved(f, QUERY, "weight"), "query.idf_weights"),
        (
            lambda f: (f / DOCUMENT / "sentence_bert_config.json").write_text('{"max_seq_length": 9}'),
            "max_document_tok",
        ),
        (lambda f: (f / QUERY / "config.json").write_text('{"frozen": true}'), "frozen query weights"),
        (lambda f: (f / "config_sentence_transformers.json").write_text('{"prompts": {}}'), "prompts"),
    ],
    ids=["weights", "table", "limit", "frozen", "prompts"],
)
def test_a_saved_model_that_is_another_is_told(make_encoder, tmp_path, change, told):
    encoder = make_encoder(prompts=PROMPTS, max_document_tokens=30)
    encoder.save(tmp_path / "model")
    check_saved(encoder, tmp_path / "model", TEXTS)
    change(tmp_path / "model")
    with pytest.raises(UserError, match=f"is not the one that was trained: read again, it differs in .*{told}"):
        check_saved(encoder, tmp_path / "model", TEXTS)


def test_a_run_whose_model_is_not_saved_as_trained_fails(world, tmp_path, monkeypatch):
    save = AsymmetricSparseEncoder.save

    def save_something_else(encoder: AsymmetricSparseEncoder, folder: Path) -> None:
        save(encoder, folder)
        change_saved(Path(folder), QUERY, "weight")

    monkeypatch.setattr(AsymmetricSparseEncoder, "save", save_something_else)
    outcome = call(fit.main, "--config", world.config(tmp_path / "run"))
    assert outcome.code == 2
    assert "is not the one that was trained" in outcome.errors[0]


@pytest.mark.parametrize("usual", [True, False], ids=["[PAD]", "another"])
def test_a_tokenizer_without_a_pad_token_gets_one(tiny_tokenizer, tmp_path, usual, caplog):
    engine = tiny_tokenizer.backend_tokenizer
    if not usual:
        engine = engine.from_str(engine.to_str().replace("[PAD]", "[FIRST]"))
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine, model_max_length=64, **names)
    assert tokenizer.pad_token is None
    base = save_base(tmp_path / "base", tiny_masked_lm("bert", len(tokenizer)), tokenizer)
    with caplog.at_level(logging.WARNING):
        encoder = AsymmetricSparseEncoder.from_base(str(base)).eval()
    assert encoder.tokenizer.pad_token == ("[PAD]" if usual else "[UNK]")
    assert ("names no pad token, so [UNK] pads" in caplog.text) is not usual
    encoder.save(tmp_path / "model")
    check_saved(encoder, tmp_path / "model", [*TEXTS, "[PAD] song"])
    peer = SparseEncoder(str(tmp_path / "model"), device="cpu").encode_document(TEXTS).to_dense()
    torch.testing.assert_close(encoder.encode_document(TEXTS).to_dense(), peer, rtol=1e-4, atol=1e-4)


CODE = """
from transformers import PreTrainedTokenizerFast

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def test_the_models_own_tokenizer_is_that_of_the_data(world, tiny_tokenizer, tmp_path, monkeypatch):
    base = save_base(tmp_path / "base", tiny_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer)
    (base / "own_tokenizer.py").write_text(CODE)
    path = base / "tokenizer_config.json"
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    used: list[str] = []
    setup = PairsDataModule.setup

    def set_up(data: PairsDataModule, stage: str | None = None) -> None:
        used.append(type(data.tokenisation.tokenizer).__name__)
        setup(data, stage)

    monkeypatch.setattr(PairsDataModule, "setup", set_up)
    for allowed in (True, False):
        changes = {"model.base_model": str(base), "model.trust_remote_code": allowed, "trainer.callbacks": None}
        outcome = call(fit.main, "--config", world.config(tmp_path / f"run_{allowed}", changes))
        assert outcome.code == 0, outcome.err
        assert {name == "OwnTokenizer" for name in used} == {allowed}
        used.clear()


@pytest.mark.parametrize(
    ("name", "size"), [("num_hidden_layers", 300_000), ("n_layers", 300_000), ("num_labels", 10**8), ("inner", [10**9])]
)
def test_a_config_with_sizes_of_no_model_is_told_at_once(tiny_tokenizer_dir, tiny_tokenizer, tmp_path, name, size):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(tiny_tokenizer_dir / "tokenizer.json", folder)
    (folder / "model.safetensors").touch()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "rope_theta": 10**9, name: size}))
    told = f"{folder}: {name} is [0-9,]+ in its config.json, which no model has; fetch the model again"
    with pytest.raises(UserError, match=told):
        load_masked_lm(str(folder), tiny_tokenizer)
    with pytest.raises(UserError, match=told):
        load_tokenizer(str(folder))


def test_a_tokenizer_without_an_end_leaves_the_limit_to_the_model(make_encoder, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "model_max_length", float("inf"))
    encoder = make_encoder()
    positions = encoder.document.model.config.max_position_embeddings
    assert encoder.tokenisation.max_query_tokens == positions
