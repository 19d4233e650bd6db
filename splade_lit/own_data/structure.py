"""Pairs of a query and a document out of one document's own structure, where nobody has asked anything yet.

A title stands for what its text is about, a heading for its section, a first sentence for what follows it, and a few
words of a sentence for what stands around it: the inverse cloze task (Lee et al. 2019, "Latent retrieval for weakly
supervised open domain question answering"), with queries cropped (Izacard et al. 2022, "Unsupervised dense information
retrieval with contrastive learning").
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import xxhash

from splade_lit.core.sentences import run_of_words, split_sentences, words_of

_QUERY_WORDS = range(4, 33)  # of a first sentence; of a longer one, the first words
_CROP_WORDS = range(4, 13)  # of a query cut from a sentence: about as long as what people type
_LABEL_WORDS = range(1, 33)  # of a title or a heading
_MIN_DOCUMENT_WORDS = 8
_DOCUMENT_WORDS = 400  # more than a model of 512 tokens reads
_LONGEST_SENTENCE = 80  # in words
_AROUND_WORDS = (
    150  # about a sentence that a query is cut from: of longer texts a model on a CPU reads the beginning only
)
_WORDS_PER_SPAN = 100  # of a document, for each pair that is made of a span
_MAX_SPANS = 3
_KEPT = 0.1  # of the sentences that a query is cut from stay in the document, as in the inverse cloze task

_HEADING = re.compile(
    r"^(?:#{1,6}[ \t]++(?P<marked>\S.*+)"  # Markdown
    r"|(?P<wiki>={2,6})[ \t]*+(?P<inner>[^=\n]++)(?P=wiki)[ \t]*+"  # a wiki
    r"|(?P<underlined>\S.*)\n(?P<line>[=~^\-])(?P=line){2,}[ \t]*)$",  # Markdown and reStructuredText
    re.MULTILINE,
)


class Kind(StrEnum):
    """What a query was made of."""

    TITLE = "title"
    SENTENCE = "first sentence"
    HEADING = "heading"
    SPAN = "span"


@dataclass(frozen=True)
class Document:
    """A document of a corpus as it is stored.

    Attributes:
        id: its id.
        title: its title; empty if it has none.
        text: its text.
        is_title_searched: whether the title is part of what is searched, as one of a column `title` is.
    """

    id: str
    title: str
    text: str
    is_title_searched: bool = True

    @property
    def searched(self) -> str:
        """The text that is searched: the title, where it is part of it, before the text."""
        return f"{self.title} {self.text}".strip() if self.is_title_searched else self.text


@dataclass(frozen=True)
class StructurePair:
    """A query that was made of a document, and what else stands in the document, which is to be found with it."""

    kind: Kind
    query: str
    document: str


def lead_pair(document: Document) -> StructurePair | None:
    """Title and text, else first sentence and the rest; None if there is neither, or too little of it.

    >>> lead_pair(Document("1", "", "Water boils at lower heat there. The air is thin up high, so pots need a lid."))
    StructurePair(kind=<Kind.SENTENCE: 'first sentence'>, query='Water boils at lower heat there.', \
document='The air is thin up high, so pots need a lid.')
    """
    title, sentences = _title_and_sentences(document)
    text = " ".join(sentences)
    if len(words_of(title)) in _LABEL_WORDS and _is_long(text):
        return StructurePair(Kind.TITLE, title, text)
    return _sentence_pair(sentences[0], " ".join(sentences[1:])) if sentences else None


def structure_pairs(document: Document, seed: int = 0) -> list[StructurePair]:
    """All pairs that a document is good for; which spans are drawn depends on its text and the seed alone.

    From a title to the text; from the first sentence to the rest; from each heading to its section; and from spans of
    sentences to what stands around them. Where there is a title, it stands before the documents of the others, if it
    does where the document is searched.
    """
    title, sentences = _title_and_sentences(document)
    if not sentences:
        return []
    pairs: list[StructurePair] = []
    if len(words_of(title)) in _LABEL_WORDS:
        pairs.append(StructurePair(Kind.TITLE, title, _cut(" ".join(sentences))))
    before = "" if document.title and not document.is_title_searched else title
    if first := _sentence_pair(sentences[0], " ".join(sentences[1:])):
        pairs.append(replace(first, document=_cut(f"{before} {first.document}")))
    for heading, section in _sections(document.text):
        if len(words_of(heading)) in _LABEL_WORDS and heading != title:
            pairs.append(StructurePair(Kind.HEADING, heading, _cut(f"{before} {section}")))
    pairs += _span_pairs(before, sentences, random.Random(xxhash.xxh3_64_intdigest(f"{seed} {document.text}".encode())))
    return [pair for pair in pairs if _is_long(pair.document) and pair.query != pair.document]


def _span_pairs(title: str, sentences: Sequence[str], rng: random.Random) -> Iterator[StructurePair]:
    lengths = [len(words_of(sentence)) for sentence in sentences]
    number = min(max(sum(lengths) // _WORDS_PER_SPAN, 1), _MAX_SPANS)
    long_enough = [place for place, length in enumerate(lengths) if place > 0 and length >= _CROP_WORDS.start]
    for place in sorted(rng.sample(long_enough, min(number, len(long_enough)))):
        length = min(rng.choice(_CROP_WORDS), lengths[place])
        query = run_of_words(sentences[place], rng.randint(0, lengths[place] - length), length)
        begin, end = _around(lengths, place)
        kept = rng.random() < _KEPT
        around = [sentence for n, sentence in enumerate(sentences[begin:end], begin) if kept or n != place]
        yield StructurePair(Kind.SPAN, query, " ".join([title, *around]).strip())


def _around(lengths: Sequence[int], place: int) -> tuple[int, int]:
    """The first and the last of the sentences that stand around one of them."""
    begin, end, words = place, place + 1, 0
    while (begin > 0 or end < len(lengths)) and words < _AROUND_WORDS:
        if begin > 0:
            begin -= 1
            words += lengths[begin]
        if end < len(lengths):
            words += lengths[end]
            end += 1
    return begin, end


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Each heading, and the text from it to the next one."""
    found = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in found[1:]] + [len(text)]
    for heading, end in zip(found, ends, strict=False):
        yield _label(heading), " ".join(text[heading.end() : end].split())


def _title_and_sentences(document: Document) -> tuple[str, list[str]]:
    """The title, else the heading that the text begins with, and the sentences of the text, headings among them."""
    title, text = " ".join(document.title.split()), document.text.strip()
    if not title and (heading := _HEADING.match(text)):
        title, text = _label(heading), text[heading.end() :]
    sentences = split_sentences(_HEADING.sub(lambda heading: f"\n\n{_label(heading)}\n\n", text))
    return title, [piece for sentence in sentences for piece in _pieces(sentence)]


def _pieces(sentence: str) -> list[str]:
    """The sentence, or parts of one that is so long that it lacks punctuation, as what was spoken does."""
    length = len(words_of(sentence))
    if length <= _LONGEST_SENTENCE:
        return [sentence]
    return [run_of_words(sentence, n, _LONGEST_SENTENCE // 4) for n in range(0, length, _LONGEST_SENTENCE // 4)]


def _label(heading: re.Match[str]) -> str:
    marked = heading["marked"] and (heading["marked"].rstrip(" \t#") or heading["marked"])
    return " ".join((marked or heading["inner"] or heading["underlined"]).split())


def _sentence_pair(first: str, rest: str) -> StructurePair | None:
    if len(words_of(first)) < _QUERY_WORDS.start or not _is_long(rest):
        return None
    return StructurePair(Kind.SENTENCE, _short(first), rest)


def _short(sentence: str) -> str:
    longest = _QUERY_WORDS.stop - 1
    return sentence if len(words_of(sentence)) <= longest else run_of_words(sentence, 0, longest)


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(words_of(text)) <= _DOCUMENT_WORDS else run_of_words(text, 0, _DOCUMENT_WORDS)


def _is_long(text: str) -> bool:
    return len(words_of(text)) >= _MIN_DOCUMENT_WORDS
