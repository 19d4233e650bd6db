"""What holds for every file: it imports on its own, costs nothing until used, and stays small."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import COMMANDS, environment
from conftest import REPOSITORY

import splade_lit
from splade_lit import export

PACKAGE = REPOSITORY / "splade_lit"
MODULES = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)
TEXTS = sorted(
    path
    for pattern in (
        "splade_lit/**/*.py",
        "tests/**/*.py",
        "scripts/**/*",
        "experiments/*",
        ".ci/*",
        "Makefile",
        "*.toml",
    )
    for path in REPOSITORY.glob(pattern)
    if path.is_file() and "__pycache__" not in path.parts
)
# Hosts of package registries; a mirror or a proxy is the machine's own business.
REGISTRIES = ("pypi" + ".org", "python" + "hosted.org", "conda" + ".anaconda", "download.py" + "torch.org")


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        cwd="/",
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_on_its_own():
    """A fresh package each time, in a process that has the libraries loaded already: a fork costs next to nothing."""
    code = """
import gc, importlib, os, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "splade_lit"]:
    del sys.modules[name]
gc.disable()
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(name, repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    print(name, os.waitpid(child, 0)[1], flush=True)
"""
    assert python(code, *MODULES).splitlines() == [f"{name} 0" for name in MODULES]


def test_importing_the_package_loads_no_library():
    code = """
import sys
before = set(sys.modules)
import splade_lit
assert splade_lit.__version__
dir(splade_lit)
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    loaded = set(re.findall(r"'(\w+)'", python(code)))
    assert "splade_lit" in loaded
    assert loaded <= sys.stdlib_module_names | {"splade_lit"}


def test_public_names_are_there():
    assert splade_lit.__all__
    assert dir(splade_lit) == sorted(splade_lit.__all__)
    for name in splade_lit.__all__:
        assert getattr(splade_lit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'SpladeModel'"):
        _ = splade_lit.SpladeModel


@pytest.mark.parametrize("path", [path for path in TEXTS if path.suffix == ".py"], ids=lambda path: str(path.name))
def test_files_are_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_no_file_names_a_registry():
    assert TEXTS
    naming = [path.name for path in TEXTS if any(host in path.read_text(encoding="utf-8") for host in REGISTRIES)]
    assert naming == []


def test_modules_say_what_they_are_for():
    texts = {path: path.read_text().removeprefix("r") for path in PACKAGE.rglob("*.py")}
    assert [path for path, text in texts.items() if text and not text.startswith('"""')] == []


def test_every_experiment_and_command_is_where_it_is_looked_for():
    names = ("card", "compare", "encode", "evaluate", "export", "fit", "init", "mine", "prune", "push", "search")
    assert {f"splade_lit.{name}" for name in names} <= COMMANDS.keys()
    for name, module in COMMANDS.items():
        assert f"python -m {name}" in (REPOSITORY / f"{module.replace('.', '/')}.py").read_text()
    assert list(Path(REPOSITORY, "experiments").glob("*.yaml"))


# What takes seconds to load, and what a description of options has no use for.
HEAVY = ("bm25s", "codecarbon", "datasets", "lightning", "numba", "numpy", "pandas", "pyarrow", "scipy", "tokenizers")
HEAVY += ("torch", "torchmetrics", "transformers", "wandb")


HELPS = [(module, ()) for module in COMMANDS.values()]
HELPS += [("splade_lit.export", (name,)) for name in export.FORMATS]


@pytest.mark.parametrize(("module", "words"), HELPS, ids=lambda part: part if isinstance(part, str) else " ".join(part))
def test_help_loads_no_large_library(module, words):
    """The time that it takes depends on the machine; what is loaded does not."""
    code = """
import importlib, sys
try:
    importlib.import_module(sys.argv[1]).main([*sys.argv[2:], "--help"])
except SystemExit as end:
    assert not end.code
print("loaded", sorted({name.partition(".")[0] for name in sys.modules}))
"""
    out, _, loaded = python(code, module, *words).rpartition("loaded ")
    assert f"usage: python -m {' '.join((module.removesuffix('.__main__'), *words))}" in out
    assert "'argparse'" in loaded
    assert [name for name in HEAVY if f"'{name}'" in loaded] == []
