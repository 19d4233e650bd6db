"""Model cards: a real run's, section by section and number by number; records, awkward texts, and the command."""

import csv
import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import yaml
from cards import MAIN, OWN_SECTIONS, REFERENCE_SECTIONS, card_run, code_blocks, section, sections, table
from command_runs import call, read_json
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from splade_lit import fit
from splade_lit.card.record import read_record
from splade_lit.encoder.model import AsymmetricSparseEncoder


@pytest.fixture(scope="module")
def run(world) -> Path:
    """A whole run; not to be written to."""
    return card_run(world, "whole")


@pytest.fixture(scope="module")
def text(run) -> str:
    return (run / "model" / "README.md").read_text()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
    assert everything["model.lambda_d"] == "null"  # the reference's, which the loss above says
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
    callbacks = [{"class_path": "splade_lit.training.callbacks.save_model.SaveModel", "init_args": settings}]
    changes = {"trainer.callbacks": callbacks, "trainer.max_steps": 1}
    assert call(fit.main, "--config", world.config(folder, changes)).code == 0
    text = (folder / "model" / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.language, data.license) == (["en", "de"], "mit")
    assert "\n# My model\n" in text
    assert 'SparseEncoder("me/mine")' in text
    assert "- **Language:** en, de\n- **License:** mit\n" in text


def test_a_record_of_before_parts_says_the_same(run, tmp_path):
    """Its settings say what the loss was made of."""
    record = read_json(run / "model" / "card.json")
    del record["training"]["parts"], record["training"]["loss"]["ranking"]
    (tmp_path / "card.json").write_text(json.dumps(record))
    before, now = read_record(tmp_path), read_record(run / "model")
    assert before is not None
    assert now is not None
    assert before.training.parts == now.training.parts != []
