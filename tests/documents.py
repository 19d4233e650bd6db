"""Running what README and docs show, as a reader would: shell blocks command by command, Python blocks in between."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import yaml
from command_runs import COMMANDS, Outcome, World, call, environment
from conftest import REPOSITORY

_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a reader has in the folder that commands are run in.
_LINKED = (
    "CONTRIBUTING.md",
    "Makefile",
    "README.md",
    "constraints.txt",
    "docs",
    "notebooks",
    "pyproject.toml",
    "scripts",
)
_RUNS = ("quickstart", "my_run")
_SETTING = re.compile(r"^[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A block of code: its language, its text, and the line that it begins in."""

    language: str
    text: str
    line: int


def documents() -> list[Path]:
    """README, CONTRIBUTING and all pages of docs."""
    return [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("**/*.md"))]


def blocks(document: Path) -> list[Block]:
    """The shell and Python blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 2) for found in _BLOCK.finditer(text)]


def commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a shell block, as it is and in words; comments and empty lines are passed over."""
    for line in block.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield line.strip(), words


@dataclass(frozen=True)
class Exempt:
    """A command that is not run as it stands.

    Attributes:
        pattern: what it looks like.
        reason: why it is not run.
        instead: what is checked in its place; takes the line, its words, and the folder.
    """

    pattern: str
    reason: str
    instead: Callable[[str, list[str], Path], Outcome]


def run_line(line: str, words: list[str], folder: Path) -> Outcome:
    """`python -m splade_lit.NAME ...` in this process, by the command's own parser; other programs in the shell."""
    if words[:2] == ["python", "-m"] and words[2].startswith("splade_lit."):
        return call(import_module(COMMANDS[words[2]]).main, *words[3:])
    return shell(line, folder)


def shell(line: str, folder: Path) -> Outcome:
    """A command in a process of its own."""
    path = f"{Path(sys.executable).parent}:{environment()['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", line],
        cwd=folder,
        env=environment(PATH=path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def make_reader(folder: Path, world: World, run: Path) -> Path:
    """A folder as a reader has it: the project's own files, finished runs, pairs and documents of their own.

    Args:
        folder: to write to.
        world: a tiny model, which takes the place of the base models of the experiments.
        run: the folder of a finished run.
    """
    folder.mkdir(parents=True)
    for name in _LINKED:
        if (REPOSITORY / name).exists():
            (folder / name).symlink_to(REPOSITORY / name)
    for name in _RUNS:
        shutil.copytree(run, folder / "runs" / name)
    (folder / "experiments").mkdir()
    for path in (REPOSITORY / "experiments").iterdir():
        if path.suffix == ".yaml":
            _write_small(path, folder / "experiments" / path.name, world)
    for name in ("pairs.jsonl", "docs.jsonl", "queries.jsonl", "qrels.tsv"):
        shutil.copy(world.folder / "own" / name, folder / name)
    shutil.copytree(world.folder / "own" / "scifact", folder / "beir" / "scifact")
    return folder


def _write_small(path: Path, copy: Path, world: World) -> None:
    """The same experiment, three steps long, on the tiny model."""
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["model"] |= {"base_model": str(world.base), "max_query_tokens": 16, "max_document_tokens": 24}
    settings["model"].pop("start_active_dims", None)  # of which the tiny model has fewer
    settings["data"] |= {"num_eval_pairs": 8, "batch_size": 8}
    settings["trainer"] |= {"max_steps": 3, "val_check_interval": 3, "enable_progress_bar": False}
    copy.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def split_settings(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Environment variables set before a command, and the command."""
    number = next((n for n, word in enumerate(words) if not _SETTING.match(word)), len(words))
    return dict(word.split("=", 1) for word in words[:number]), words[number:]
