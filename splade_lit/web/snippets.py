"""Where in a text the terms of a query stand, and which part of a long text shows most of them."""

from collections.abc import Sequence
from typing import NamedTuple

from splade_lit.core.tokenisation import ReadText
from splade_lit.encoder.explain import TermShare

_BEFORE = 40  # characters shown before the first term
_MOST_STARTS = 200


class Place(NamedTuple):
    """The characters of a text, from `start` to `end`, that are a term: its number among those of a hit."""

    start: int
    end: int
    term: int


def places(read: ReadText, terms: Sequence[TermShare]) -> list[Place]:
    """Where a text holds the terms that add to a score, in the order of the text."""
    numbers = {term.dim: number for number, term in enumerate(terms) if term.share}
    ids = read.ids.tolist()
    return [
        Place(*span, numbers[id])
        for id, span in zip(ids, read.spans, strict=True)
        if span is not None and id in numbers
    ]


def excerpt(text: str, found: Sequence[Place], terms: Sequence[TermShare], length: int) -> tuple[int, int]:
    """From where to where a text is shown: so many characters at most, whole words, and the best terms among them.

    >>> excerpt("one two three", [], [], 9)
    (0, 7)
    """
    if len(text) <= length:
        return 0, len(text)

    def worth(start: int) -> float:
        shown = {place.term for place in found if start <= place.start and place.end <= start + length}
        return sum(terms[number].share for number in shown)

    starts = [0, *(max(place.start - _BEFORE, 0) for place in found[:_MOST_STARTS])]
    start = min(max(starts, key=worth), len(text) - length)  # the first of those that are equal
    end = start + length
    if start and not text[start - 1].isspace():
        start += next((n for n, character in enumerate(text[start : start + _BEFORE], 1) if character.isspace()), 0)
    if end < len(text) and not text[end].isspace():
        end -= next((n for n, character in enumerate(text[end - 1 : end - _BEFORE : -1], 1) if character.isspace()), 0)
    return start, end
