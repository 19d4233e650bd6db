"""Cutting texts of any language into sentences and words, by punctuation alone: no model, no list of one language."""

import re

# A full stop ends no sentence after a lone letter ("J. Smith", "z. B.") or one of these, nor before a small letter.
_SHORT_FORM = re.compile(
    r"(?:[^\W\d_]|al|approx|bd|bzw|ca|cf|ch|chap|corp|dept|dr|eds?|eqs?|etc|figs?|gen|gov|hr|inc|jr|ltd|mrs?|ms|nr|pp|prof"
    r"|refs?|rev|sr|str?|tab|usw|vgl|vols?|vs)\Z",
    re.IGNORECASE,
)
_LONGEST_WORD = 64  # characters that are looked at for a short form: cut from a longer word they are none
# Latin, Cyrillic, Greek, Indic, Arabic, Ethiopic and Armenian marks end a sentence before white space only (3.14);
# Chinese and Japanese ones need none after them. A blank line always ends one.
_CLOSING = "\"'\u201d\u2019\u00bb)\\]"
_WIDE_CLOSING = "\u300d\u300f\uff09\u201d\u2019"
# Runs are possessive (`++`): what follows a long one is looked at once.
_END = re.compile(
    rf"[.!?\u2026\u0964\u0965\u061f\u06d4\u1362\u0589]++[{_CLOSING}]*+(?=\s)"
    rf"|[\u3002\uff01\uff1f\uff61]++[{_WIDE_CLOSING}]*+"
    r"|\n\s*\n"
)
_NEXT = re.compile(r"\s*+(\S?)")
# Thai, Lao, Burmese, Khmer, Japanese and Chinese have no spaces between words: each character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:[-'\u2019.][^\W_{_UNSPACED}]+)*")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, with one space for any white space; nothing but white space is lost.

    >>> split_sentences("Dr. J. Smith paid 3.50 for it. Why?  Nobody knows!")
    ['Dr. J. Smith paid 3.50 for it.', 'Why?', 'Nobody knows!']
    >>> split_sentences("水は冷たい。彼は聞いた。")
    ['水は冷たい。', '彼は聞いた。']
    """
    found: list[str] = []
    start = 0
    for end in _END.finditer(text):
        if not _ends_sentence(text, start, end):
            continue
        found.append(" ".join(text[start : end.end()].split()))
        start = end.end()
    found.append(" ".join(text[start:].split()))
    return [sentence for sentence in found if sentence]


def words_of(text: str) -> list[str]:
    """The words of a text without punctuation.

    >>> words_of("Who's there, in 3.5 days? 水 は")
    ["Who's", 'there', 'in', '3.5', 'days', '水', 'は']
    """
    return _WORD.findall(text)


def run_of_words(text: str, first: int, number: int) -> str:
    """So many words of a text, from one of them on, with what stands between them.

    >>> run_of_words("Who's there, in 3.5 days?", 1, 3)
    'there, in 3.5'
    """
    places = list(_WORD.finditer(text))[first : first + number]
    return text[places[0].start() : places[-1].end()] if places else ""


def _ends_sentence(text: str, start: int, end: re.Match[str]) -> bool:
    if not end[0].startswith((".", "\u2026")):
        return True
    following = _NEXT.match(text, end.end())
    if following and following[1].islower():
        return False
    word = text[max(start, end.start() - _LONGEST_WORD) : end.start()].split()[-1:]
    return end[0] != "." or not word or _SHORT_FORM.match(word[0].lstrip("([\"'")) is None
