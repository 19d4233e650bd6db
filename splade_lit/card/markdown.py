"""Pieces of Markdown: headings, tables, code, figures as a card shows them."""

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from splade_lit.card.record import Source

_HUB = "https://huggingface.co"
_LONGEST_TEXT = 1000  # characters of a text in a table


def section(level: int, title: str, *parts: str) -> str:
    """A heading with its parts; nothing if they are all empty."""
    return join(f"{'#' * level} {title}", *parts) if any(parts) else ""


def join(*parts: str) -> str:
    """The parts that are not empty, a blank line between them."""
    return "\n\n".join(part for part in parts if part)


def fenced(language: str, text: str) -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"


def folded(text: str) -> str:
    """A text that is shown on a click."""
    return f"<details><summary>Click to expand</summary>\n\n{text}\n\n</details>" if text else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are Markdown, its header is text."""
    lines = [list(map(escaped, header)), [":---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bold(cells: Sequence[str]) -> list[str]:
    """The cells in bold."""
    return [cell if cell == "-" else f"**{cell}**" for cell in cells]


def code_cell(text: str) -> str:
    """A text in a cell of a table, as it is."""
    text = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
    # Inside <code> Markdown still counts.
    return f"<code>{'<br>'.join(escaped(text, '_').splitlines())}</code>"


def escaped(text: str, more: str = "") -> str:
    """A text in which Markdown and HTML find nothing to act on: entities in place of their characters.

    Args:
        text: such as the name of a data set.
        more: characters that are replaced as well.

    >>> escaped("<b>|nano_beir")
    '&lt;b&gt;&#124;nano_beir'
    """
    text = html.escape(text, quote=False)
    for character in f"\\`*[]|~${more}":
        text = text.replace(character, f"&#{ord(character)};")
    return text


def code(name: str) -> str:
    """A name as code in a sentence; a backtick, which would end it, becomes an apostrophe."""
    return "`{}`".format(name.replace("`", "'"))


def link(source: Source, folder: str = "") -> str:
    """A link to where something comes from on the Hub, else its name.

    Args:
        source: the model or data set.
        folder: `datasets/` for a data set.
    """
    return f"[{escaped(source.name)}]({_HUB}/{folder}{source.hub_id})" if source.hub_id else code(source.name)


def link_with_commit(source: Source, folder: str = "") -> str:
    """The same with a link to the commit, if it is known."""
    if not (source.hub_id and source.revision):
        return link(source, folder)
    tree = f"{_HUB}/{folder}{source.hub_id}/tree/{source.revision}"
    return f"{link(source, folder)} at [{source.revision[:7]}]({tree})"


def listed(names: Iterable[str]) -> str:
    """Names in one phrase.

    >>> listed(["a", "b", "c"])
    '`a`, `b` and `c`'
    """
    *first, last = [code(name) for name in names]
    return f"{', '.join(first)} and {last}" if first else last


def plural(word: str, things: Iterable[Any]) -> str:
    """The word, with an s for more than one thing."""
    return f"{word}s" if len(list(things)) > 1 else word


def figure(value: float) -> str:
    """Four decimals, without closing zeros.

    >>> figure(0.32), figure(55.45887), figure(0.0)
    ('0.32', '55.4589', '0')
    """
    return f"{value:.4f}".rstrip("0").rstrip(".")


def setting(value: Any) -> str:
    """A setting as YAML writes it; long fractions are cut.

    >>> setting(None), setting(True), setting(2e-05), setting([])
    ('null', 'true', '2e-05', '[]')
    """
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def count(number: int) -> str:
    """A count of weights.

    >>> count(22_713_216), count(9_730)
    ('22.7M', '9,730')
    """
    return f"{number / 1e6:.1f}M" if number >= 1e6 else f"{number:,}"
