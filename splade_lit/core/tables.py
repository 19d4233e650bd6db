"""Named columns of files of text: csv, tsv, jsonl, json, txt and parquet, where nothing is guessed.

- Ids and texts are strings as written.
- csv has the usual quotes; tsv has none, as in MS MARCO's files: a quote is a character there.
- A number in JSON is its literal as an id and refused as a text; lists, objects and booleans are refused as either.
"""

import csv
import io
import json
import math
import textwrap
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from splade_lit.core.errors import UserError
from splade_lit.core.text import LONGEST_LINE, Mender, open_text, without_end

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
BATCH_ROWS = 1_000
_LARGEST_NUMBER = 1e9  # of scores, whose squares and differences are taken in fp32
_TABLES = (".parquet", ".arrow")  # the second is what `datasets` keeps in its cache

Values = list[str | None]
_Records = Iterator[tuple[int, Mapping[str, Any]]]

csv.field_size_limit(LONGEST_LINE)


class _Number(str):
    """The literal of a number in JSON."""


_decode = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_Number).decode


def file_kind(path: Path) -> str:
    """The ending of a file's name that says what is in it, `.csv` for `a.CSV.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def column_names(path: Path) -> list[str]:
    """Names of the columns of a file, in JSON those of its first 1,000 lines; none if it has no rows.

    A UserError says that it is none of `FORMATS` by its name (all but parquet also with `.gz`), or cannot be read.
    """
    if path.suffix.lower() == ".parquet":
        with _plain_errors(path):
            return list(pq.read_schema(path).names)
    return list(dict.fromkeys(chain.from_iterable(record for _, record in islice(_records(path), BATCH_ROWS))))


def read_rows(
    path: Path,
    columns: Sequence[str],
    ids: Sequence[str] = (),
    mend: Mender | None = None,
    lists: bool = False,
    names: Sequence[str] | None = None,
) -> Iterator[tuple[int, Values]]:
    """Line, from 1, and values of the columns in each row of a file; a text that is not there is None.

    `ids` are those of the columns that hold ids. With `lists`, a list of ids is as many rows, as in judgements of some
    NanoBEIR sets. `mend` counts what is not valid Unicode; without one, a warning says how much there was. `names` are
    those of the columns of a csv or tsv without a line of names, as MS MARCO's. A UserError is that of `column_names`,
    or says that a column is missing, that a row has no id, or that a value is no text.
    """
    _check_columns(path, columns, names)
    count = mend or Mender()
    for line, record in _records(path, columns, names):
        many = next((name for name in ids if isinstance(record.get(name), list)), None) if lists else None
        for row in [{**record, many: id} for id in record[many]] if many else [record]:
            yield line, [_text(row.get(name), count, path, line, name, name in ids) for name in columns]
    if mend is None:
        count.report(path)


def read_numbers(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[float]]]:
    """Line, from 1, and numbers of each row of a file: those of one column after another, where a list is as many.

    A number that is not there (null, an empty field, NaN) is NaN, a list that is not there no number. A UserError is
    that of `column_names`, or says that a column is missing or holds something else.
    """
    _check_columns(path, columns)
    for line, record in _records(path, columns):
        numbers: list[float] = []
        for name in columns:
            value = record.get(name)
            if isinstance(value, str) and value.lstrip().startswith("["):  # a list in csv
                value = _decoded(value) or value
            for one in value if isinstance(value, list) else [value]:
                numbers.append(_number(one, path, line, name))
        yield line, [] if len(columns) == 1 and record.get(columns[0]) in (None, "") else numbers


def read_unique(
    files: Sequence[Path],
    columns: Sequence[str],
    mend: Mender | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Values]:
    """The rows of files one after another, where the first column is an id that no two rows share.

    Memory grows by 8 bytes a row. A UserError is that of `read_rows`, or says after the last row that two have one id.
    """
    hashes = array("q")
    for path in files:
        for _, values in read_rows(path, columns, columns[:1], mend, names=names):
            hashes.append(hash(values[0]))
            yield values
    if len(np.unique(np.frombuffer(hashes, dtype=np.int64))) == len(hashes):
        return
    places: dict[str | None, str] = {}
    for path in files:
        for line, (id,) in read_rows(path, columns[:1], columns[:1], Mender(), names=names):
            place = f"{path}, line {line}"
            if (first := places.setdefault(id, place)) != place:
                raise UserError(f"{place}: the {columns[0]} {id!r} is also that of {first}; make them unique.")


def _check_columns(path: Path, columns: Sequence[str], given: Sequence[str] | None = None) -> None:
    if not (there := given or column_names(path)):
        raise UserError(f"{path}: the data set has no rows.")
    if missing := ", ".join(name for name in columns if name not in there):
        names = textwrap.shorten(", ".join(there), 300, placeholder=" ...")
        raise UserError(f"{path}: no column {missing}; its columns are {names}.")


def _number(value: Any, path: Path, line: int, column: str) -> float:
    if value is None or value == "":
        return math.nan
    try:
        number = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.inf
    if abs(number) > _LARGEST_NUMBER:
        what = f"the column {column} must hold numbers, or one list of them a row, none beyond {_LARGEST_NUMBER:.0e}"
        raise UserError(f"{path}, line {line}: {what}, but holds {textwrap.shorten(str(value), 60)!r}.")
    return number


def _text(value: Any, mend: Mender, path: Path, line: int, column: str, is_id: bool) -> str | None:
    if type(value) is str and (value or not is_id):
        return mend(value)
    if is_id and value in (None, ""):
        raise UserError(f"{path}, line {line}: there is no {column}; give each row its own.")
    if is_id and isinstance(value, int | _Number) and not isinstance(value, bool):
        return str(value)
    if value is None:
        return None
    what = "ids, strings or whole numbers" if is_id else "text, one string a row"
    there = type(value).__name__.strip("_").lower()
    raise UserError(f"{path}, line {line}: the column {column} must hold {what}, but holds a value of type {there}.")


def _records(path: Path, columns: Sequence[str] | None = None, names: Sequence[str] | None = None) -> _Records:
    """Line and values by name of each row of a file; of parquet, only those of `columns`.

    `names` are those of the columns of a csv or tsv without a line of names.
    """
    kind = file_kind(path)
    if kind not in (*FORMATS, *_TABLES) or (kind in _TABLES and path.suffix.lower() == ".gz"):
        endings = ", ".join(FORMATS)
        raise UserError(f"{path}: not a data file by its name; it must end in {endings} (all but .parquet also .gz).")
    if kind in _TABLES:
        with _plain_errors(path):
            if kind == ".parquet":
                batches: Iterable[pa.RecordBatch] = pq.ParquetFile(path).iter_batches(BATCH_ROWS, columns=columns)
            else:
                batches = pa.ipc.open_stream(pa.memory_map(str(path)))
            yield from enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), start=1)
        return
    with open_text(path, longest=None if kind == ".json" else LONGEST_LINE) as file:  # one list may be one line
        if kind == ".txt":
            yield from ((line, {"text": without_end(text)}) for line, text in enumerate(file, start=1))
        else:
            yield from _of_json(path, file, kind) if kind.startswith(".json") else _separated(path, file, kind, names)


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {textwrap.shorten(str(error), 300)}") from error


def _of_json(path: Path, file: TextIO, kind: str) -> _Records:
    """Lines of objects; a `.json` may be one list of objects, whose lines are their numbers."""
    lines: Iterable[Any] = file
    if kind == ".json":
        content = file.read()
        whole = content.lstrip().startswith("[")
        lines = _decoded(content) or [None] if whole else io.StringIO(content, newline="\n")
    for number, line in enumerate(lines, start=1):
        if isinstance(line, str) and not line.strip():
            continue
        record = _decoded(line) if isinstance(line, str) else line
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: not a JSON object.")
        yield number, record


def _decoded(text: str) -> Any:
    try:
        return _decode(text)
    except (ValueError, RecursionError):
        return None


def _separated(path: Path, file: TextIO, kind: str, given: Sequence[str] | None) -> _Records:
    """Records of csv or tsv below the line with their names, or all with the names given."""
    names = list(given or ())
    for line, fields in _fields(path, file, kind):
        if fields in ([], [""]):
            continue
        if not names:
            names = fields
            if len(names) == 1 and ";" in names[0]:
                cut = "tabs" if kind == ".tsv" else "commas"
                raise UserError(f"{path}: it looks cut at `;`; save it cut at {cut}.")
            if doubled := [name for name in names if name and names.count(name) > 1]:
                raise UserError(f"{path}: two columns are called {doubled[0]!r}; give each a name of its own.")
        elif len(fields) != len(names):
            where = f"there must be {len(names)}: {', '.join(names)}" if given else f"the first line has {len(names)}"
            raise UserError(f"{path}, line {line}: {len(fields)} columns where {where}.")
        else:
            yield line, dict(zip(names, fields, strict=True))


def _fields(path: Path, file: TextIO, kind: str) -> Iterator[tuple[int, list[str]]]:
    if kind == ".tsv":
        yield from enumerate((without_end(line).split("\t") for line in file), start=1)
        return
    reader = csv.reader(file, strict=True)
    line = 1
    try:
        for fields in reader:
            yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: not csv: {error}.") from error
