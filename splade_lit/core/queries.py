"""Queries in a file: jsonl with `_id` and `text`, or lines of id, tab, text."""

from collections.abc import Iterator
from pathlib import Path

from splade_lit.core.errors import UserError
from splade_lit.core.text import Mender, open_text, parse_json


def read_queries(path: Path) -> Iterator[tuple[str, str]]:
    """Id and text of each query of a jsonl file with `_id` and `text`, or a tsv file without a line of names.

    A whole number is an id too, but no text.

    Raises:
        UserError: there is no such file, or a line is of another form.
    """
    mend, is_json = Mender(), ".jsonl" in path.name
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                if is_json:
                    record = parse_json(line)
                    id, text = record["_id"], record["text"]
                    if type(id) not in (str, int) or not isinstance(text, str):
                        raise TypeError("ids and texts are strings")
                else:
                    id, text = line.rstrip("\r\n").split("\t")[:2]
            except (ValueError, KeyError, TypeError) as error:
                needed = "_id and text, both strings" if is_json else "an id, a tab and a text"
                raise UserError(f"{path}, line {number}: a query needs {needed}.") from error
            yield mend(str(id)), mend(text)
    mend.report(path)
