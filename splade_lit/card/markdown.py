"""Pieces of Markdown, which the card's template has as filters. `Markup` is text that is Markdown already."""

import html
import json
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

_LONGEST_TEXT = 1000  # characters of a text in a table


def escaped(text: str, more: str = "") -> Markup:
    """A text in which Markdown and HTML find nothing to act on: entities in place of their characters.

    Args:
        text: such as the name of a data set; Markdown stays as it is.
        more: characters that are replaced as well.

    >>> print(escaped("<b>|nano_beir"))
    &lt;b&gt;&#124;nano_beir
    """
    if isinstance(text, Markup):
        return text
    text = html.escape(text, quote=False)
    for character in f"\\`*[]|~${more}":
        text = text.replace(character, f"&#{ord(character)};")
    return Markup(text)


def code_cell(text: str) -> Markup:
    """A text in a cell of a table, as it is; the end of a long one is cut off."""
    text = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
    # Inside <code> Markdown still counts.
    return Markup(f"<code>{'<br>'.join(escaped(text, '_').splitlines())}</code>")


def code(name: str) -> Markup:
    """A name as code in a sentence; a backtick, which would end it, becomes an apostrophe."""
    return Markup("`{}`".format(name.replace("`", "'")))


def listed(names: Iterable[str]) -> Markup:
    """Names in one phrase.

    >>> print(listed(["a", "b", "c"]))
    `a`, `b` and `c`
    """
    *first, last = map(code, names)
    return Markup(f"{', '.join(first)} and {last}") if first else last


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


def millions(number: int) -> str:
    """A count of weights.

    >>> millions(22_713_216), millions(9_730)
    ('22.7M', '9,730')
    """
    return f"{number / 1e6:.1f}M" if number >= 1e6 else f"{number:,}"
