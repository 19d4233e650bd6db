"""Every shell and Python block of README, CONTRIBUTING and docs is run, in the order in which a reader meets them.

A document is read in a folder of its own, with small stand-ins where the text speaks of large things: a model of two
layers in place of MiniLM, runs of three steps, docstrings of two packages. Commands of the project go through their
real parsers, in this process. What is not run as it stands is listed in `EXEMPT`, with the reason.
"""

import io
import json
import os
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
from command_runs import COMMANDS, Outcome, World, call, make_world, write_nanobeir
from conftest import REPOSITORY
from documents import Exempt, blocks, commands, documents, make_reader, run_line, shell, split_settings

from splade_lit import fit
from splade_lit.data import docstrings
from splade_lit.data.pairs import load_pairs
from splade_lit.data.tasks import RetrievalTask
from splade_lit.own_data import wizard
from splade_lit.own_data.held_out import write_beir

DOCUMENTS = documents()


def planned(line: str, words: list[str], folder: Path) -> Outcome:
    return shell(shlex.join(["make", "-n", *words[1:]]), folder)


def extras_exist(line: str, words: list[str], folder: Path) -> Outcome:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = [extra for word in words for found in re.findall(r"\[(.*?)\]", word) for extra in found.split(",")]
    missing = [extra for extra in asked if extra not in extras]
    return Outcome(len(missing), "", f"no such extras: {missing}")


def parsed(line: str, words: list[str], folder: Path) -> Outcome:
    originals = [str(REPOSITORY / word) if word.startswith("experiments/") else word for word in words]
    return run_line(line, [*originals, "--print_config"], folder)


def dry_run(line: str, words: list[str], folder: Path) -> Outcome:
    return run_line(line, [*dict.fromkeys([*words, "--dry-run"])], folder)


def printed(line: str, words: list[str], folder: Path) -> Outcome:
    return shell(shlex.join([*words, "--entity", "me", "--print"]), folder)


def with_nanobeir_folder(line: str, words: list[str], folder: Path) -> Outcome:
    return run_line(line, [*words, "--nanobeir-source", str(folder / "tasks")], folder)


def options_exist(line: str, words: list[str], folder: Path) -> Outcome:
    outcome = run_line(line, [*words[:3], "--help"], folder)
    missing = [word for word in words if word.startswith("--") and word not in outcome.out]
    return Outcome(outcome.code or len(missing), outcome.out, f"no such options: {missing}")


def existing_tests(line: str, words: list[str], folder: Path) -> Outcome:
    missing = [word for word in words if "/" in word and not (REPOSITORY / word).exists()]
    return Outcome(len(missing), "", f"no such tests: {missing}")


EXEMPT = (
    Exempt(r"make\b", "installs a whole environment, then works for minutes", planned),
    Exempt(r"pip install|python -m pip install", "needs a network", extras_exist),
    Exempt(r"python -m pytest\b", "runs other tests", existing_tests),
    Exempt(r"python -m splade_lit\.fit .*nq_distilbert", "needs a GPU and the Hub", parsed),
    Exempt(r"python -m splade_lit\.push", "needs an account on the Hub", dry_run),
    Exempt(r"python scripts/wandb_workspace\.py", "needs an account on W&B", printed),
    Exempt(r"python -m splade_lit\.index .*--url", "needs a server", options_exist),
    Exempt(r"python -m splade_lit\.serve", "serves until it is stopped", options_exist),
    Exempt(r"python -m splade_lit\.compare runs/a", "needs runs and files of several systems", options_exist),
    Exempt(r"python -m splade_lit\.evaluate .*somebody/", "needs the Hub", options_exist),
    Exempt(r"python -m splade_lit\.evaluate .*\b(msmarco|nfcorpus|nq)\b", "needs the Hub", with_nanobeir_folder),
)
# Names that Python blocks of a document take as given.
GIVEN = {"onnx.md": {"folder": "runs/my_run/model/onnx"}}


def sentences_of(words: str) -> str:
    """The same words as sentences of seven."""
    parts = words.split()
    return " ".join(" ".join(parts[n : n + 7]).capitalize() + "." for n in range(0, len(parts), 7))


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer) -> World:
    """A tiny model, with pairs and documents as a reader has them."""
    world = make_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)
    own = world.folder / "own"
    own.mkdir()
    pairs = [(row["query"], sentences_of(row["document"])) for row in load_pairs(str(world.pairs)).dataset]
    rows = [{"question": query, "passage": document} for query, document in pairs]
    (own / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = {f"doc-{n}": text for n, text in enumerate(dict.fromkeys(document for _, document in pairs))}
    documents = [{"_id": id, "text": text} for id, text in corpus.items()]
    (own / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    task = RetrievalTask("scifact", corpus, {"q1": pairs[0][0]}, {"q1": {"doc-0": 1}})
    write_beir(task, own / "scifact")
    shutil.copy(own / "scifact" / "queries.jsonl", own / "queries.jsonl")
    shutil.copy(own / "scifact" / "qrels" / "test.tsv", own / "qrels.tsv")
    return world


@pytest.fixture(scope="module")
def run(world) -> Path:
    """A finished run."""
    folder = world.folder / "run"
    outcome = call(fit.main, "--config", world.config(folder))
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def reader(world, run, tmp_path, tiny_tokenizer, monkeypatch) -> Path:
    """The folder that a document is read in."""
    folder = make_reader(tmp_path / "reader", world, run)
    write_nanobeir(folder / "tasks", tiny_tokenizer, ("NanoMSMARCO", "NanoNFCorpus", "NanoNQ"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(docstrings, "PACKAGES", ("torchmetrics", "huggingface_hub"))
    monkeypatch.setattr(docstrings, "STANDARD_LIBRARY", "json")  # a package like the others
    monkeypatch.setattr(wizard, "base_candidates", lambda gpu: (str(world.base),))
    return folder


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_shows_runs(document, reader, monkeypatch):
    names = dict(GIVEN.get(document.name, {}))
    monkeypatch.syspath_prepend(reader)
    for block in blocks(document):
        place = f"{document.name}, line {block.line}"
        if found := re.match(r"# (\w+\.py)\n", block.text):
            (reader / found[1]).write_text(block.text)  # a file that the reader writes
        if block.language == "python":
            exec(compile(block.text, place, "exec"), names)
            continue
        for line, words in commands(block.text):
            settings, words = split_settings(words)
            exempt = next((e for e in EXEMPT if re.match(e.pattern, " ".join(words))), None)
            with monkeypatch.context() as patch:
                patch.setattr("sys.stdin", io.StringIO("a query that is typed\n"))
                for name, value in settings.items():
                    patch.setenv(name, value)
                outcome = (exempt.instead if exempt else run_line)(line, words, reader)
            assert outcome.code == 0, f"{place}: {line}\n{outcome.out}\n{outcome.err}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        page = (document.parent / name) if name else document
        assert page.exists(), f"{document.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in anchors, f"{document.name}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_code_stands_in_blocks_that_are_run(document):
    """A command in a block of another kind would not be run."""
    text = document.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    others = [body for language, body in fenced if language not in ("bash", "python", "text")]  # text: what is printed
    assert [body for body in others if re.search(r"^(\$ )?python -m splade_lit", body, re.MULTILINE)] == []
    assert re.findall(r"^ {4}(\$ )?python -m splade_lit", text, re.MULTILINE) == []


def test_every_command_is_shown():
    page = "\n".join(block.text for block in blocks(REPOSITORY / "docs" / "commands.md"))
    assert [name for name in COMMANDS if f"python -m {name} " not in page] == []


def test_a_command_that_fails_fails_the_test(reader):
    """The net that the blocks go through catches: unknown options, missing files, broken programs."""
    for line in (
        "python -m splade_lit.search --model runs/quickstart/model --corpora docs.jsonl query",
        "python -m splade_lit.evaluate --model gone --tasks docstrings",
        "python -c 'raise SystemExit(3)'",
        "no_such_program",
    ):
        ((_, words),) = commands(line)
        assert run_line(line, words, reader).code != 0
    for line in ("make no_such_target", "pip install -e '.[no_such_extra]'"):
        ((_, words),) = commands(line)
        exempt = next(e for e in EXEMPT if re.match(e.pattern, line))
        assert exempt.instead(line, words, reader).code != 0
    assert os.getcwd() == str(reader)
