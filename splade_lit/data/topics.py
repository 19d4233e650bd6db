"""TREC's topics: queries in the markup of its tracks.

Older ones have `<top> <num> Number: 401 <title> foreign minorities, Germany`, which is no XML; newer ones are, as
TREC-COVID's `<topic number="1"><query>coronavirus origin</query>...</topic>`.
"""

import html
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from splade_lit.core.errors import UserError
from splade_lit.core.text import text_lines

_TOP = re.compile(r"<top>(.*?)(?=</?top>|\Z)", re.DOTALL | re.IGNORECASE)
_FIELDS = {
    "num": re.compile(r"<num>\s*(?:Number\s*:)?\s*([^\s<]+)", re.IGNORECASE),
    "title": re.compile(r"<title>\s*(?:Topic\s*:)?(.*?)(?=</?[a-z]+>|\Z)", re.DOTALL | re.IGNORECASE),
}
_XML_TOPIC = re.compile(r"<topic\s")
_DOCTYPE = re.compile(r"<!(DOCTYPE|ENTITY)", re.IGNORECASE)


def is_topics(path: Path) -> bool:
    """Whether a file is in the markup: its first line that is not blank begins with `<`."""
    return any(line.lstrip().startswith("<") for _, line in _first(path))


def _first(path: Path) -> Iterator[tuple[int, str]]:
    for found in text_lines(path):
        yield found
        return


def read_topics(path: Path) -> Iterator[tuple[str, str]]:
    """Number and title of each topic; descriptions and narratives are passed over.

    In XML the title is what stands in `<title>`, else in `<query>`, else in the topic itself. A UserError says that
    there is no topic, that one lacks its number or its title, that two have one number, or that XML cannot be read.
    """
    text = "\n".join(line for _, line in text_lines(path))
    in_xml = bool(_XML_TOPIC.search(text))
    needed = "a number and a <title> or <query>" if in_xml else "a <num> and a <title>"
    seen: set[str] = set()
    for place, (number, title) in enumerate(_of_xml(text, path) if in_xml else _of_markup(text), start=1):
        title = " ".join(title.split())
        if not (number and title):
            raise UserError(f"{path}, topic {number or place}: a topic needs {needed}.")
        if number in seen:
            raise UserError(f"{path}: two topics have the number {number}; make them unique.")
        seen.add(number)
        yield number, title
    if not seen:
        raise UserError(
            f"{path}: no topics; give TREC's form, <top> with <num> and <title>, or lines of id, tab, text."
        )


def _of_markup(text: str) -> Iterator[tuple[str, str]]:
    for topic in _TOP.findall(text):
        number, title = (found[1] if (found := field.search(topic)) else "" for field in _FIELDS.values())
        yield number, html.unescape(title)


def _of_xml(text: str, path: Path) -> Iterable[tuple[str, str]]:
    if _DOCTYPE.search(text):  # what it declares may name other files, or grow without end
        raise UserError(f"{path} has a DOCTYPE, which is not read; remove it.")
    try:
        topics = list(ElementTree.fromstring(text.lstrip()).iter("topic"))
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is no XML: {error}.") from error
    for topic in topics:
        parts = (topic.findtext("title"), topic.findtext("query"), topic.text)
        yield topic.get("number", "").strip(), next((part for part in parts if part and part.strip()), "")
