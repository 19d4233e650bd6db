"""Docstrings of source files, cut into a first sentence and the rest. Files are parsed, never imported or run.

`python -m splade_lit.data.docstring_parser` reads `module<tab>file` lines on standard input and writes one JSON record
a line. `docstrings` starts two such processes.
"""

import ast
import gc
import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

QUERY_WORDS = range(4, 31)
MIN_REST_WORDS = 15
MAX_REST_WORDS = 200
MIN_PROSE = 0.6  # share of plain words; texts with fewer are code, tables or formulas

_MARKUP = [
    (re.compile(r":[\w:+-]+:`~?\.?([^`<]+?)(?:\s*<[^`]*>)?`"), r"\1"),  # :class:`~torch.Tensor` -> torch.Tensor
    (re.compile(r"`+"), ""),
    (re.compile(r"^\s*(?:>>>|\.\.\.)(?: |$)", re.MULTILINE), ""),
    (re.compile(r"^\s*\.\. .*$", re.MULTILINE), ""),  # .. versionadded:: 1.2
    (re.compile(r"^\s*[-=~^*+#]{3,}\s*$", re.MULTILINE), ""),
]
_SENTENCE_END = re.compile(r"(?<![.\s]\w)(?<!e\.g)(?<!i\.e)(?<!etc)(?<!\bvs)(?<!\bcf)[.!?](?=\s+[A-Z\"'(\[]|\s*$)")
_PLAIN_WORD = re.compile(r"[A-Za-z]+(?:[-'][A-Za-z]+)*[.,;:!?)]*")
_NO_QUERY = re.compile(
    r"deprecated|copied from|^\W|^\w+ \("
    r"|^(?:see|alias|same as|equivalent to|refer to|todo|note|usage|example|args?|internal)\b"
    r"|::|https?:|->|[\w.]+\([^)]*=|\b(?:todo|fixme)\b|^\w+\.py\b|copyright|^(?:this|the) (?:file|module)\b",
    re.IGNORECASE,
)


class Docstring(NamedTuple):
    """A docstring: qualified name, first sentence, and the rest on one line, `MAX_REST_WORDS` words at most."""

    name: str
    first_sentence: str
    rest: str


def parse_source(source: str, module: str) -> Iterator[Docstring]:
    """The usable docstrings of one source file in their order; none if the file is not valid Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for name, docstring in _raw_docstrings(tree, module):
        if parts := split_docstring(docstring):
            yield Docstring(name, *parts)


def _raw_docstrings(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, str]]:
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("__"):
            continue
        name = f"{prefix}.{child.name}"
        if docstring := ast.get_docstring(child, clean=False):
            yield name, docstring
        if isinstance(child, ast.ClassDef):
            yield from _raw_docstrings(child, name)


def split_docstring(docstring: str) -> tuple[str, str] | None:
    """`(first sentence, rest)` as plain text; None if either is unfit for search.

    >>> rest = " ".join(["Padding is added on both sides before the windows slide over the rows of the matrix."] * 2)
    >>> split_docstring(f"Slide windows over a :class:`~torch.Tensor`. {rest}")[0]
    'Slide windows over a torch.Tensor.'
    >>> split_docstring("Slide windows over a matrix.") is None
    True
    """
    text = plain_text(inspect.cleandoc(docstring))
    opening, _, body = text.partition("\n\n")
    opening = " ".join(opening.split())
    end = _SENTENCE_END.search(opening)
    query = opening[: end.end()] if end else opening
    rest = " ".join(f"{opening[len(query) :]} {body}".split()[:MAX_REST_WORDS])
    num_words, rest_words = len(query.split()), len(rest.split())
    fit = num_words in QUERY_WORDS and rest_words >= MIN_REST_WORDS and not _NO_QUERY.search(query)
    prose = min(_share_of_prose(query), _share_of_prose(rest)) >= MIN_PROSE
    return (query, rest) if fit and prose and query.lower() not in rest.lower() else None


def plain_text(text: str) -> str:
    """The text without reStructuredText roles, backticks, directives, underlines and doctest prompts.

    >>> plain_text("Return ``x`` as :func:`~numpy.array`.")
    'Return x as numpy.array.'
    """
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text


def _share_of_prose(text: str) -> float:
    words = text.split()
    return sum(_PLAIN_WORD.fullmatch(word) is not None for word in words) / max(len(words), 1)


def main() -> None:
    """Read `module<tab>file` lines and write JSON records; files that cannot be read are passed over."""
    gc.disable()  # syntax trees hold no cycles, and searching for them takes a sixth of the time
    warnings.simplefilter("ignore")  # about escapes in the strings of other packages
    for line in sys.stdin:
        module, path = line.rstrip("\n").split("\t")
        try:
            source = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for record in parse_source(source, module):
            print(json.dumps(record))


if __name__ == "__main__":
    main()
