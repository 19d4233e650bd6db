"""The door for text from outside: how bytes become text, and files of judgements and of rankings.

Nothing is guessed: ids and texts are strings as written, a byte order mark is no text, what is not valid Unicode is
replaced and counted, and an id that a format cannot hold is refused.
"""

import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from splade_lit.core.errors import UserError

_QRELS = ("query-id", "corpus-id", "score")
_QRELS_FORMS = "give lines of query-id, corpus-id and score below a first line with these names (BEIR), or lines of "
_QRELS_FORMS += "query id, 0, document id and grade (TREC), with tabs or spaces between"
_HALF_PAIR = re.compile("[\ud800-\udfff]")  # bytes that are not UTF-8 become such halves too
_COLUMN = re.compile(r"[^ \t\r\n\v\f]+")  # str.split would cut ids at white space of other kinds

_MOST_DIGITS = 300  # that a float can hold
LONGEST_LINE = 64 << 20
"""Bytes of a line, or characters of a field of csv, beyond which a file is taken for damaged."""
_READ_BYTES = 1 << 18

logger = logging.getLogger(__name__)


@cache
def warn_once(message: str) -> None:
    """Log a warning once a process: sources are read again and again."""
    logger.warning(message)


class Mender:
    """Replaces what is not valid Unicode by U+FFFD; `count` is the number of characters replaced."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, text: str) -> str:
        r"""The text in valid Unicode.

        >>> Mender()("caf\udce9") == "caf\ufffd"
        True
        """
        try:
            text.encode()  # in far less time than a regular expression takes
        except UnicodeEncodeError:
            text, count = _HALF_PAIR.subn("\ufffd", text)
            self.count += count
        return text

    def report(self, source: object) -> None:
        """Warn if characters were replaced."""
        if self.count:
            warn_once(f"{source}: {self.count:,} characters are not valid Unicode and are replaced by U+FFFD.")


class _ShortLines(io.RawIOBase):
    """The bytes of a file; a UserError where a line is too long, before more than a part of it is in memory."""

    def __init__(self, binary: Any, path: Path, longest: int) -> None:
        self._binary, self._path, self._longest = binary, path, longest
        self._line, self._length = 1, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._binary.read(min(len(buffer), _READ_BYTES))
        buffer[: len(data)] = data
        if ends := data.count(b"\n"):
            self._line, self._length = self._line + ends, len(data) - data.rindex(b"\n") - 1
        else:
            self._length += len(data)
        if self._length > self._longest:
            raise UserError(
                f"{self._path}, line {self._line}: the line is longer than {self._longest >> 20} MiB; cut it, or look "
                "whether the file is damaged."
            )
        return len(data)


@contextmanager
def open_text(path: Path, longest: int | None = LONGEST_LINE) -> Iterator[TextIO]:
    r"""A file of UTF-8, gzipped if its name ends in `.gz`, whose lines end at `\n` only.

    Bytes that are not UTF-8 come as halves of surrogate pairs, for a `Mender`. A UserError says that the file cannot be
    read, is UTF-16, or has a line of more bytes than `longest`.
    """
    try:
        opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
        with opener(path, "rb") as binary:
            if binary.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(f"{path}: the text is UTF-16; save it as UTF-8.")
            if longest is not None:
                binary = io.BufferedReader(_ShortLines(binary, path, longest), _READ_BYTES)
            yield io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="\n")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def parse_json(text: str | bytes) -> Any:
    """The value of JSON text; a ValueError says that it is none, nested too deeply, or has a number beyond floats."""
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def without_end(line: str) -> str:
    """A line without the characters that end it."""
    return line.removesuffix("\n").removesuffix("\r")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line that is not blank, in valid Unicode."""
    mend = Mender()
    with open_text(path) as file:
        yield from ((number, mend(without_end(line))) for number, line in enumerate(file, start=1) if line.strip())
    mend.report(path)


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Query id to document id to grade, from judgements in BEIR's form or in TREC's.

    Columns end at tabs if the first line has one, else at spaces; a grade may be written as `1.0`. A UserError says
    that there is no such file, that it is in neither form, or that a document has two grades for a query.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; a BEIR folder needs its judgements in qrels/test.tsv.")
    lines = list(text_lines(path))
    first = lines[0][1] if lines else ""
    columns = (lambda line: line.split("\t")) if "\t" in first else _COLUMN.findall
    names = columns(first)
    if set(_QRELS) <= set(names):
        places = [names.index(name) for name in _QRELS]
        del lines[0]
    elif len(names) == 4:
        places = [0, 2, 3]
    else:
        raise UserError(f"{path}: not judgements; {_QRELS_FORMS}.")
    qrels: dict[str, dict[str, int]] = {}
    for number, line in lines:
        values = columns(line)
        query_id, document_id, score = (values[place] if place < len(values) else "" for place in places)
        try:
            grade = int(float(score)) if float(score).is_integer() else int(score)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: the score is not a whole number; {_QRELS_FORMS}.") from error
        if not (query_id and document_id):
            raise UserError(f"{path}, line {number}: an id is missing.")
        if qrels.setdefault(query_id, {}).setdefault(document_id, grade) != grade:
            raise UserError(f"{path}, line {number}: {document_id} has another grade for {query_id} further up.")
    return qrels


def qrels_text(qrels: Mapping[str, Mapping[str, int]]) -> str:
    """Judgements in BEIR's form; a UserError if an id is empty, or holds a tab or the end of a line."""
    rows = [(query, id, grade) for query, grades in qrels.items() for id, grade in grades.items()]
    if bad := [id for query, document, _ in rows for id in (query, document) if not id or re.search(r"[\t\r\n]", id)]:
        raise UserError(f"The id {bad[0]!r} has a tab or the end of a line, or is empty; judgements need another.")
    return "".join("\t".join(map(str, row)) + "\n" for row in (_QRELS, *rows))


def read_trec_run(path: Path) -> dict[str, dict[str, float]]:
    """Query id to document id to score, from lines of `query_id Q0 document_id rank score tag`.

    A UserError says that a line is not of that form, or that a document is ranked twice for a query.
    """
    run: dict[str, dict[str, float]] = {}
    for number, line in text_lines(path):
        try:
            query_id, _, document_id, _, score, _ = _COLUMN.findall(line)
            value = float(score)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not `query_id Q0 document_id rank score tag`.") from error
        if run.setdefault(query_id, {}).setdefault(document_id, value) != value:
            raise UserError(f"{path}, line {number}: {document_id} is ranked for {query_id} further up already.")
    return run


def trec_run_text(run: Mapping[str, Mapping[str, float]]) -> str:
    """A ranking as lines of `query_id Q0 document_id rank score tag`; errors are those of `check_trec_ids`."""
    check_trec_ids(id for query_id, scores in run.items() for id in (query_id, *scores))
    return "".join(
        f"{query_id} Q0 {document_id} {rank} {score!r} splade_lit\n"
        for query_id, scores in run.items()
        for rank, (document_id, score) in enumerate(scores.items(), start=1)
    )


def check_trec_ids(ids: Iterable[str], file: str = "a TREC run") -> None:
    """Raise a UserError if a TREC run (or `file`) cannot hold an id: empty, with white space, byte order mark first."""
    if bad := next((id for id in ids if id.split() != [id] or id.startswith("\ufeff")), None):
        raise UserError(f"The id {bad!r} has white space, which {file} cannot hold; change it or do without that file.")


def check_ids(
    source: str, documents: Collection[str], queries: Collection[str], qrels: Mapping[str, Mapping[str, int]]
) -> None:
    """Look up the ids of judgements in the corpus and the queries of `source`; warn of those that are not there.

    A UserError says that no judgement names a document, or none a query.
    """
    pairs = [(query_id, document_id) for query_id, grades in qrels.items() for document_id in grades]
    for place, known, what in ((0, queries, "query"), (1, documents, "document")):
        ids = [pair[place] for pair in pairs if pair[place] not in known]
        if known and pairs and len(ids) == len(pairs):
            ours = f"one has the id {ids[0]!r} where a {what} has {next(iter(known))!r}"
            raise UserError(f"{source}: no judgement names a {what}: {ours}; write the ids alike in all files.")
        if ids:
            warn_once(f"{source}: {len(ids):,} of {len(pairs):,} judgements name no {what}, such as {ids[0]!r}.")
    if unjudged := sum(query_id not in qrels for query_id in queries):
        logger.info("%s: %d of %d queries have no judgement and are left out.", source, unjudged, len(queries))
