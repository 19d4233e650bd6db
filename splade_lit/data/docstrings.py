"""A retrieval set that every machine has: docstrings of installed packages, first sentence against the rest.

Pairs and task are parts of one corpus. A hash of the query decides where a pair goes: of every 1000 pairs, 20 give the
queries of the task and their answers, 110 give other documents of its corpus, 870 are for training. No text of the task
is in the training pairs.
"""

import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from splade_lit.core.errors import UserError
from splade_lit.core.files import Folder, cache_folder, replace_text
from splade_lit.data import docstring_parser
from splade_lit.data.docstring_parser import Docstring

DOCSTRINGS = "docstrings"
# The project depends on these packages, so every installation has them.
PACKAGES = ["datasets", "huggingface_hub", "lightning", "networkx", "numpy", "pandas", "scipy", "sympy", "torch"]
PACKAGES += ["torchmetrics", "transformers"]
STANDARD_LIBRARY = "python"
SKIPPED_FOLDERS = {"__pycache__", "_vendor", "ensurepip", "externals", "idlelib", "lib2to3", "turtledemo"}
SKIPPED_FOLDERS |= {"dist-packages", "site-packages", "test", "testing", "tests"}
WORKERS = 2
QUERY_SHARE = 20  # pairs of 1000 that give queries of the task with their documents
CORPUS_SHARE = 130  # pairs of 1000 that give documents of the task, the answers among them
OPENING_WORDS = 12  # documents that begin with the same words count as copies, which differ late if at all
QUOTE_WORDS = 3  # words by which queries are looked up; every query has more

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DocstringCorpus:
    """Docstrings without copies, in parts that share no text; the same for the same versions of packages.

    The task has the queries and answers of `held_out`, and documents that answer none of them, the `distractors`.
    """

    train: tuple[Docstring, ...]
    distractors: tuple[Docstring, ...]
    held_out: tuple[Docstring, ...]


def document_text(docstring: Docstring) -> str:
    """What is searched: the qualified name and everything after the first sentence."""
    return f"{docstring.name}: {docstring.rest}"


def load_docstrings(cache_dir: Folder = None) -> DocstringCorpus:
    """The corpus of the packages installed here, parsed once; a UserError if no docstring is on this machine."""
    versions = _installed_versions()
    # Other code makes another corpus.
    rules = [xxhash.xxh3_64_hexdigest(Path(str(file)).read_bytes()) for file in (docstring_parser.__file__, __file__)]
    key = xxhash.xxh3_64_hexdigest(json.dumps([versions, rules]).encode())
    path = cache_folder(cache_dir) / "docstrings" / f"{key}.jsonl"
    try:
        if lines := path.read_text(encoding="utf-8").splitlines():
            return _split([Docstring(*json.loads(line)) for line in lines])
    except (OSError, ValueError, TypeError, AttributeError):  # not there, or damaged
        pass
    logger.info("Parsing the docstrings of %s (once, then cached).", ", ".join(versions))
    docstrings = _without_copies(_parse(list(_source_files(versions))))
    if not docstrings:
        raise UserError("docstrings: no Python source with docstrings is installed here; give another source of pairs.")
    try:
        replace_text(path, "".join(f"{json.dumps(docstring)}\n" for docstring in docstrings))
    except UserError as error:
        logger.warning("The docstrings are not cached: %s", error)
    return _split(docstrings)


def _installed_versions() -> dict[str, str]:
    versions = {STANDARD_LIBRARY: platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            logger.warning("docstrings: the package %s is not installed and left out.", package)
    return versions


def _source_files(packages: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """`(module, file)` of each source file, found without importing anything."""
    for package in packages:
        root = base = Path(sysconfig.get_paths()["stdlib"])
        if package != STANDARD_LIBRARY:
            spec = importlib.util.find_spec(package)
            if spec is None or not spec.submodule_search_locations:
                continue
            root = Path(spec.submodule_search_locations[0])
            base = root.parent
        for folder, subfolders, files in os.walk(root):
            subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
            for path in (Path(folder, name) for name in sorted(files) if name.endswith(".py")):
                yield ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"), path


def _parse(files: list[tuple[str, Path]]) -> list[Docstring]:
    with ThreadPoolExecutor(WORKERS) as pool:
        outputs = pool.map(_parse_in_process, (files[part::WORKERS] for part in range(WORKERS)))
        return sorted(Docstring(*json.loads(line)) for output in outputs for line in output.splitlines())


def _parse_in_process(files: list[tuple[str, Path]]) -> str:
    # A fresh interpreter on a module that imports little. A fork would copy a process with threads, and a spawned
    # process would run the caller's main module again.
    command = [sys.executable, "-m", docstring_parser.__name__]
    listing = "".join(f"{module}\t{path}\n" for module, path in files)
    root = Path(str(docstring_parser.__file__)).parents[2]
    return subprocess.run(command, input=listing, stdout=subprocess.PIPE, text=True, cwd=root, check=True).stdout


def _without_copies(docstrings: Iterable[Docstring]) -> list[Docstring]:
    """Of docstrings with the same name, query or opening words, the first one; their order stays."""
    kept = []
    seen: set[str] = set()
    for docstring in docstrings:
        opening = " ".join(_words(docstring.rest)[:OPENING_WORDS])
        keys = {f"name {docstring.name}", f"query {_normal(docstring.first_sentence)}", f"opening {opening}"}
        if seen.isdisjoint(keys):
            kept.append(docstring)
            seen |= keys
    return kept


def _split(docstrings: list[Docstring]) -> DocstringCorpus:
    shares = [xxhash.xxh3_64_intdigest(_normal(docstring.first_sentence).encode()) % 1000 for docstring in docstrings]
    # A training pair that quotes a query of the task leaks it. A document that quotes one is a second answer to it.
    queries: dict[tuple[str, ...], list[list[str]]] = {}
    for docstring, share in zip(docstrings, shares, strict=True):
        if share < QUERY_SHARE:
            query = _words(docstring.first_sentence)
            queries.setdefault(tuple(query[:QUOTE_WORDS]), []).append(query)
    parts: tuple[list[Docstring], ...] = ([], [], [])
    for docstring, share in zip(docstrings, shares, strict=True):
        part = (share >= QUERY_SHARE) + (share >= CORPUS_SHARE)  # held out, distractors or train
        texts = [document_text(docstring), *([docstring.first_sentence] if share >= CORPUS_SHARE else [])]
        if not any(_quotes(_words(text), queries) for text in texts):
            parts[part].append(docstring)
    held_out, distractors, train = map(tuple, parts)
    return DocstringCorpus(train, distractors, held_out)


def _quotes(words: list[str], queries: dict[tuple[str, ...], list[list[str]]]) -> bool:
    """Whether `words` contain one of the queries, which are grouped by their first words."""
    return any(
        words[start : start + len(query)] == query
        for start in range(len(words))
        for query in queries.get(tuple(words[start : start + QUOTE_WORDS]), ())
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _normal(text: str) -> str:
    return " ".join(_words(text))
