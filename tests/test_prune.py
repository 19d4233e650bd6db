"""`python -m splade_lit.prune`: the trade-off of limits, the choice, and what it writes into a model."""

import itertools
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import Outcome, call, read_json
from sentence_transformers import SparseEncoder

from splade_lit import AsymmetricSparseEncoder, evaluate, prune
from splade_lit.card import __main__ as card
from splade_lit.data.tasks import load_tasks
from splade_lit.encoder.pruning import Pruning
from splade_lit.evaluation.paired_tests import paired_tests
from splade_lit.evaluation.task_evaluation import evaluate_task
from splade_lit.evaluation.trade_off import Limit, PrunedFigures, choose, trade_off
from splade_lit.report.pruning import finding, html

TASKS = ("NanoMSMARCO", "NanoNQ")
CONFIG = "config_sentence_transformers.json"


@pytest.fixture(scope="module")
def model(world, tmp_path_factory) -> Path:
    """A saved model with a card; its queries have a cap of their own."""
    folder = tmp_path_factory.mktemp("pruned") / "model"
    encoder = AsymmetricSparseEncoder.from_base(str(world.base), max_document_tokens=32, max_query_active_dims=3)
    encoder.save(folder)
    assert call(card.main, folder).code == 0
    return folder


@pytest.fixture(scope="module", autouse=True)
def _wide_terminal() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        yield


@pytest.fixture
def own_model(model, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(model, tmp_path / "model"))


def run(model: Path, world: Any, folder: Path, *options: object) -> Outcome:
    outcome = call(prune.main, model, "--tasks", world.tasks, "--output", folder / "page.html", *options)
    assert outcome.code == 0, outcome.err
    return outcome


def table(out: str, task: str) -> dict[str, list[str]]:
    """What is kept to the cells of its row, of a task's table."""
    lines = [line.strip() for line in out.splitlines()]
    found = {}
    for line in lines[lines.index(task) + 1 :]:
        if line in TASKS:
            break
        if row := re.match(r"(all|at most .*?|weights from .*?)  +(\d.*)$", line):
            found[row[1]] = row[2].split()
    return found


def test_figures_are_those_of_an_evaluation_at_each_limit(model, world, tmp_path):
    """Each limit of the grid, evaluated one by one with the options of `evaluate`."""
    encoder = AsymmetricSparseEncoder.load(model)
    tasks = load_tasks([str(world.tasks)])
    prunings = [Pruning(max_document_active_dims=4), Pruning(min_document_weight=0.4), Pruning(None, 9, 0.1, 0.3)]
    limits = trade_off(encoder, tasks, [*prunings, Pruning(), prunings[0]])
    assert [limit.pruning for limit in limits] == [Pruning(), *prunings]
    whole = {task.name: evaluate_task(encoder, task).rank_metrics.per_query["ndcg@10"] for task in tasks}
    for limit in limits:
        encoder.pruning = replace(limit.pruning, max_query_active_dims=3)
        for task in tasks:
            found, expected = limit.figures[task.name], evaluate_task(encoder, task)
            documents = encoder.encode_document(list(task.corpus.values()), convert_to_csr=True)
            sizes = np.diff(documents.indptr)
            assert found.ndcg == expected.metrics["ndcg@10"]
            assert found.active_dims == expected.metrics["corpus_active_dims"] == pytest.approx(sizes.mean())
            assert found.flops == expected.metrics["avg_flops"]
            assert (found.largest, found.postings, found.empty) == (sizes.max(), sizes.sum(), (sizes == 0).sum())
            assert found.index_mb == pytest.approx(8 * documents.nnz / 1e6)
            values = expected.rank_metrics.per_query["ndcg@10"] - whole[task.name]
            assert found.loss == pytest.approx(-values.mean())
            assert found.p == paired_tests(values)[1]
        assert limit.postings == sum(one.postings for one in limit.figures.values())


def figures(loss: float, postings: int, p: float = 1.0) -> PrunedFigures:
    return PrunedFigures(0.8 - loss, loss, p, postings / 10, postings, 0.1, postings, 0)


def test_the_smallest_index_within_a_loss_on_every_task():
    def limit(cap: int | None, *ones: PrunedFigures) -> Limit:
        return Limit(Pruning(max_document_active_dims=cap), dict(zip("ab", ones, strict=True)))

    whole = limit(None, figures(0.0, 900), figures(0.0, 900))
    mild = limit(64, figures(0.004, 500), figures(-0.01, 500))
    uneven = limit(32, figures(0.002, 300), figures(0.03, 300, p=0.2))
    strong = limit(16, figures(0.02, 100), figures(0.3, 100, p=0.001))
    limits = [whole, mild, uneven, strong]
    for within, expected in ((0.0, whole), (0.004, mild), (0.005, mild), (0.03, uneven), (0.5, strong), (None, uneven)):
        assert choose(limits, within) is expected
    # A gain beyond chance is no loss, and what saves nothing does not replace whole vectors.
    assert (
        choose(
            [whole, limit(8, figures(-0.1, 9, p=0.0), figures(-0.1, 9, p=0.0))], None
        ).pruning.max_document_active_dims
        == 8
    )
    assert choose([whole, limit(99, figures(0.0, 900), figures(0.0, 900))], 0.1) is whole
    assert finding(limits, uneven) == (
        "Kept of a document: at most 32 dims; 67% of the index saved; nDCG@10 a 0.8000 to 0.7980 (which may be chance, "
        "p 1.0000), b 0.8000 to 0.7700 (which may be chance, p 0.2000)"
    )
    assert "b 0.8000 to 0.5000 (a loss beyond chance)" in finding(limits, strong)
    assert "a 0.8000, b 0.8000; --within" in finding(limits, None)


def test_tables_and_page(model, world, tmp_path):
    outcome = run(model, world, tmp_path, "--within", "0.01", "--caps", 4, 2, "--shares", 0.5, "--weights")
    page = (tmp_path / "page.html").read_text()
    encoder = AsymmetricSparseEncoder.load(model)
    for task in load_tasks([str(world.tasks)]):
        rows = table(outcome.out, task.name)
        assert list(rows) == ["all", "at most 2 dims", "at most 4 dims", "weights from 50% of the largest"]
        encoder.pruning = Pruning(3, 4)
        assert rows["at most 4 dims"][0] == f"{evaluate_task(encoder, task).metrics['ndcg@10']:.4f}"
        assert rows["at most 4 dims"][3:5] == ["4.0", "4"]
        for cell in itertools.chain(rows, *rows.values()):
            assert cell.strip(",") in page
    assert "chosen" in outcome.out
    assert outcome.last_line == f"page: {tmp_path / 'page.html'}"
    assert page.count('<svg class="chart"') == 4
    assert outcome.out.splitlines()[-2].rstrip(".") in re.sub(r"\s+", " ", page)
    assert AsymmetricSparseEncoder.load(model).pruning == Pruning(max_query_active_dims=3)


class Balanced(HTMLParser):
    """Checks that elements are closed in the order in which they are opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "circle":
            assert self.open.pop() == tag


@pytest.mark.parametrize("chosen", [0, 1, None])
def test_any_name_is_text_on_the_page(chosen):
    names = ("<script>a</script>", "b & c")
    limits = [
        Limit(Pruning(None, cap), dict(zip(names, (figures(loss, postings),) * 2, strict=True)))
        for cap, loss, postings in ((None, 0.0, 0), (3, 0.0, 0))
    ]
    page = html(limits, None if chosen is None else limits[chosen], Pruning(None, 3), names[0])
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "<script" not in page


def test_what_is_written_is_what_the_model_does(own_model, world, tmp_path, caplog):
    (own_model / "onnx").mkdir()
    (own_model / "onnx" / "config.json").write_text("{}")
    before = {path: path.read_bytes() for path in own_model.rglob("*") if path.is_file()}
    outcome = run(
        own_model, world, tmp_path, "--max-document-active-dims", 4, "--min-document-weight-share", 0.25, "--write"
    )
    kept = "at most 4 dims, weights from 25% of the largest"
    assert outcome.last_line == f"written: {own_model} keeps of a document: {kept}; its card says so"
    assert "export again" in caplog.text
    assert "sentence-transformers knows a number of dims alone" in caplog.text
    changed = [path.name for path in before if path.read_bytes() != before[path]]
    assert sorted(changed) == ["README.md", "card.json", CONFIG]
    encoder = AsymmetricSparseEncoder.load(own_model)
    assert encoder.pruning == Pruning(3, 4, 0.0, 0.25)  # that of queries stays
    assert SparseEncoder(str(own_model), device="cpu").max_active_dims == 4
    # The figures of the card are those of an evaluation.
    assert (
        call(evaluate.main, "--model", own_model, "--tasks", world.tasks, "--output", tmp_path / "figures.json").code
        == 0
    )
    measured, text = read_json(tmp_path / "figures.json")["model"], (own_model / "README.md").read_text()
    assert kept in text
    for row, task in zip(read_json(own_model / "card.json")["pruned"], TASKS, strict=True):
        assert row["name"] == task
        assert row["ndcg"] == measured[f"{task}_dot_ndcg@10"]
        assert row["active_dims"] == measured[f"{task}_corpus_active_dims"]
        assert row["whole_active_dims"] > row["active_dims"]
        assert f"| {task} |" in text
    # The limit is among what is measured the next time, and another choice takes its place.
    again = run(own_model, world, tmp_path, "--caps", 8, "--weights", "--shares")
    assert "as saved" in again.out[again.out.index(kept) :].splitlines()[0]
    assert call(prune.main, own_model, "--max-document-active-dims", 5, "--write").code == 0
    assert AsymmetricSparseEncoder.load(own_model).pruning == Pruning(3, 5, 0.0, 0.25)  # what is not named stays
    measured = run(own_model, world, tmp_path, "--caps", "--weights", "--shares", "--max-document-active-dims", 6)
    assert "at most 6 dims, weights from 25% of the largest" in measured.out
    lifted = call(prune.main, own_model, "--max-document-active-dims", 0, "--write")
    assert "keeps of a document: weights from 25% of the largest" in lifted.last_line
    assert call(prune.main, own_model, "--min-document-weight-share", 0, "--write").code == 0
    assert AsymmetricSparseEncoder.load(own_model).pruning == Pruning(3)
    assert read_json(own_model / CONFIG)["pruning"]["max_document_active_dims"] is None
    assert "at most" not in (own_model / "README.md").read_text()


def test_the_choice_is_written(own_model, world, tmp_path):
    run(own_model, world, tmp_path, "--within", "1", "--write")
    pruning = AsymmetricSparseEncoder.load(own_model).pruning
    # Any loss is borne: the smallest index of all.
    encoder = AsymmetricSparseEncoder.load(own_model)
    encoder.pruning = Pruning(3)
    grid = [Pruning(None, cap) for cap in prune._CAPS] + [Pruning(min_document_weight=one) for one in prune._WEIGHTS]
    grid += [Pruning(min_document_weight_share=one) for one in prune._SHARES]
    smallest = min(trade_off(encoder, load_tasks([str(world.tasks)]), grid), key=lambda limit: limit.postings)
    assert pruning == replace(smallest.pruning, max_query_active_dims=3)


def test_a_model_without_a_card_and_a_card_of_somebody_else(own_model):
    (own_model / "card.json").unlink()
    readme = (own_model / "README.md").read_text()
    outcome = call(prune.main, own_model, "--min-document-weight", 0.5, "--write")
    assert outcome.code == 0, outcome.err
    assert outcome.last_line.endswith("keeps of a document: weights from 0.5")
    assert (own_model / "README.md").read_text() == readme
    assert not (own_model / "card.json").exists()


def test_a_model_that_another_library_saved(own_model, world, tmp_path):
    SparseEncoder(str(own_model), device="cpu").save_pretrained(str(tmp_path / "theirs"), create_model_card=False)
    assert call(prune.main, tmp_path / "theirs", "--max-document-active-dims", 6, "--write").code == 0
    assert AsymmetricSparseEncoder.load(tmp_path / "theirs").pruning == Pruning(None, 6)
    assert SparseEncoder(str(tmp_path / "theirs"), device="cpu").max_active_dims == 6
    plain = call(prune.main, world.base, "--max-document-active-dims", 6, "--write")
    assert plain.code == 2
    assert "save it first" in plain.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "Nothing to do"),
        (["--max-document-active-dims", "8"], "Nothing to do"),
        (["--write"], "--within 0.005"),
        (["--tasks", "nq", "--write"], "--within 0.005"),
        (["--within", "0.1"], "--tasks"),
        (["--tasks", "nq", "--within", "0.1", "--min-document-weight", "1"], "give one of them"),
        (["--tasks", "nq", "--within", "much"], "much"),
        (["--tasks", "nq", "--within", "-1"], "from 0 to 1"),
        (["--tasks", "nq", "--caps", "0"], "at least 1"),
        (["--tasks", "nq", "--shares", "1.5"], "from 0 to 1"),
        (["--tasks", "nq", "--weights", "inf"], "at least 0"),
        (["--min-document-weight-share", "2", "--write"], "from 0 to 1"),
    ],
    ids=str,
)
def test_nonsense_is_refused_before_anything_is_loaded(model, options: Sequence[str], words: str):
    before = (model / CONFIG).read_bytes()
    outcome = call(prune.main, model, *options)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert words in outcome.errors[0]
    assert (model / CONFIG).read_bytes() == before


def test_a_hub_model_has_no_folder_to_write_into(tmp_path):
    outcome = call(prune.main, "somebody/their-model", "--max-document-active-dims", 8, "--write")
    assert outcome.code == 2
    assert "not a folder to write into" in outcome.errors[0]


def test_a_model_without_a_place_for_limits_is_told_before_it_is_measured(world, tmp_path):
    """A masked-language model with an idf.json beside it, as some are published."""
    folder = Path(shutil.copytree(world.base, tmp_path / "theirs"))
    (folder / "idf.json").write_text(json.dumps({"the": 1.0}))
    outcome = call(prune.main, folder, "--tasks", "nowhere", "--max-document-active-dims", 8, "--write")
    assert outcome.code == 2
    assert "has no place for limits" in outcome.errors[0]


def test_what_lies_there_stays_when_the_disk_is_full(own_model, monkeypatch):
    """The file is replaced whole, or not at all."""
    before = (own_model / CONFIG).read_bytes()

    def full(self: Path, *_: Any, **__: Any) -> int:
        self.open("w").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    outcome = call(prune.main, own_model, "--max-document-active-dims", 8, "--write")
    assert outcome.code == 2
    assert "No space left" in outcome.errors[0]
    assert (own_model / CONFIG).read_bytes() == before
    assert json.loads(before)
    assert not [path for path in own_model.iterdir() if path.name.startswith(".")]
