"""Rows of a CSV file as dictionaries of text."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from splade_lit.core.files import replace_text


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file, column to text; none if there is no file, an OSError or ValueError if it is damaged."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return list(csv.DictReader(file))
        except csv.Error as error:
            raise ValueError(str(error)) from error


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows in place of what the file held; a column that a row lacks is empty there. See `replace_text`."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue())
