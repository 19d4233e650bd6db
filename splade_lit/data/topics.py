"""TREC's topics: queries in the markup of its tracks, `<top> <num> Number: 401 <title> foreign minorities, Germany`."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from splade_lit.core.errors import UserError
from splade_lit.core.text import text_lines

_TOP = re.compile(r"<top>(.*?)(?=</?top>|\Z)", re.DOTALL | re.IGNORECASE)
_FIELDS = {
    "num": re.compile(r"<num>\s*(?:Number\s*:)?\s*([^\s<]+)", re.IGNORECASE),
    "title": re.compile(r"<title>\s*(?:Topic\s*:)?([^<]*)", re.IGNORECASE),
}


def is_topics(path: Path) -> bool:
    """Whether a file is in the markup: its first line that is not blank begins with `<`."""
    return any(line.lstrip().startswith("<") for _, line in _first(path))


def _first(path: Path) -> Iterator[tuple[int, str]]:
    for found in text_lines(path):
        yield found
        return


def read_topics(path: Path) -> Iterator[tuple[str, str]]:
    """Number and title of each topic; descriptions and narratives are passed over.

    A UserError says that there is no topic, that one lacks its number or its title, or that two have one number.
    """
    text = "\n".join(line for _, line in text_lines(path))
    seen: set[str] = set()
    for place, topic in enumerate(_TOP.findall(text), start=1):
        number, title = (found[1] if (found := field.search(topic)) else "" for field in _FIELDS.values())
        title = " ".join(html.unescape(title).split())
        if not (number and title):
            raise UserError(f"{path}, topic {number or place}: a topic needs a <num> and a <title>.")
        if number in seen:
            raise UserError(f"{path}: two topics have the number {number}; make them unique.")
        seen.add(number)
        yield number, title
    if not seen:
        raise UserError(
            f"{path}: no topics; give TREC's form, <top> with <num> and <title>, or lines of id, tab, text."
        )
