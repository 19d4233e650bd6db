"""Where in a text the terms of a query stand, and which part of a long text shows most of them."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
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


def places(read: ReadText, terms: Sequence[TermShare], most: int | None = None) -> list[Place]:
    """Where a text holds the terms that add to a score, in the order of the text: all places, or the first ones."""
    numbers = {term.dim: number for number, term in enumerate(terms) if term.share}
    ids = read.ids.tolist()
    found = (
        Place(*span, numbers[id])
        for id, span in zip(ids, read.spans, strict=True)
        if span is not None and id in numbers
    )
    return list(islice(found, most))


def excerpt(text: str, found: Sequence[Place], terms: Sequence[TermShare], length: int) -> tuple[int, int]:
    """From where to where a text is shown: so many characters at most, whole words, and the best terms among them.

    >>> excerpt("one two three", [], [], 9)
    (0, 7)
    """
    if len(text) <= length:
        return 0, len(text)

    start = min(_best_start(found, terms, length), len(text) - length)
    end = start + length
    if start and not text[start - 1].isspace():
        start += next((n for n, character in enumerate(text[start : start + _BEFORE], 1) if character.isspace()), 0)
    if end < len(text) and not text[end].isspace():
        end -= next((n for n, character in enumerate(text[end - 1 : end - _BEFORE : -1], 1) if character.isspace()), 0)
    return start, end


def _best_start(found: Sequence[Place], terms: Sequence[TermShare], length: int) -> int:
    """Where the part of a text begins that has the terms of most worth: the first of those that are equal."""
    shown: Counter[int] = Counter()  # places of each term in the part
    first = last = best_start = 0
    most = -1.0
    for start in (0, *(max(place.start - _BEFORE, 0) for place in found[:_MOST_STARTS])):  # ascending
        while last < len(found) and found[last].end <= start + length:
            shown[found[last].term] += 1
            last += 1
        while first < last and found[first].start < start:
            shown[found[first].term] -= 1
            first += 1
        worth = sum(terms[number].share for number, count in shown.items() if count)
        if worth > most:
            most, best_start = worth, start
    return best_start
