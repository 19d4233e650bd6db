"""The notebooks run from top to bottom, on a run of ours and on a model of sentence-transformers without a run."""

import re
from pathlib import Path

import nbformat
import pytest
from analysis_runs import save_with_peer, train
from command_runs import World, environment
from conftest import REPOSITORY
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
CHARTS = {"01_active_dims": 6, "02_query_table": 4, "03_explain": 3, "04_compare_runs": 4}
CHARTS_WITHOUT_RUN = {"01_active_dims": 6, "02_query_table": 1, "03_explain": 3, "04_compare_runs": 0}
NO_RUN = "Left out: peer is a model without its run; give the folder of a run, such as runs/quickstart."


def execute(model: Path, world: World, **changes: str) -> dict[str, NotebookNode]:
    """All notebooks, executed in one kernel that forgets its names between them: libraries are loaded once."""
    whole = nbformat.v4.new_notebook()
    books = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
    for book in books.values():
        whole.cells += [nbformat.v4.new_code_cell("%reset -f"), *book.cells]
    settings = {"SPLADE_LIT_MODEL": str(model), "SPLADE_LIT_TASK": str(world.tasks), "SPLADE_LIT_MAX_DOCUMENTS": "25"}
    client = NotebookClient(whole, timeout=300, resources={"metadata": {"path": str(REPOSITORY / "notebooks")}})
    client.execute(env=environment(IPYTHONDIR=str(world.folder / "ipython"), **settings, **changes))
    return books


@pytest.fixture(scope="module")
def on_run(world) -> dict[str, NotebookNode]:
    return execute(train(world, "finished"), world)


@pytest.fixture(scope="module")
def on_model(world) -> dict[str, NotebookNode]:
    return execute(save_with_peer(world), world)


def charts(book: NotebookNode) -> int:
    """Charts that a notebook shows."""
    return sum("image/png" in output.get("data", {}) for cell in book.cells for output in cell.get("outputs", []))


def printed(book: NotebookNode, stream: str = "stdout") -> str:
    """What a notebook prints."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == stream)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_kept(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    left = [cell.id for cell in book.cells if cell.get("outputs") or cell.get("execution_count")]
    assert left == [], f"run: jupyter nbconvert --clear-output --inplace notebooks/{path.name}"
    assert book.metadata.keys() == {"kernelspec", "language_info"}


def test_notebooks_run_on_a_run(on_run):
    assert {name: charts(book) for name, book in on_run.items()} == pytest.approx(CHARTS, abs=1)
    for book in on_run.values():
        assert "Left out" not in printed(book)
        assert "Warning" not in printed(book, "stderr")
    assert "There is one snapshot only" not in printed(on_run["04_compare_runs"])


def test_notebooks_run_without_a_run(on_model):
    assert {name: charts(book) for name, book in on_model.items()} == pytest.approx(CHARTS_WITHOUT_RUN, abs=1)
    for name in ("02_query_table", "04_compare_runs"):
        assert NO_RUN in printed(on_model[name])
    assert "There is one snapshot only" in printed(on_model["04_compare_runs"])
    for book in on_model.values():
        assert "Warning" not in printed(book, "stderr")


def test_the_docs_name_every_notebook():
    named = re.findall(r"(0\d_\w+)\.ipynb", (REPOSITORY / "docs" / "notebooks.md").read_text(encoding="utf-8"))
    assert sorted(set(named)) == [path.stem for path in NOTEBOOKS]
