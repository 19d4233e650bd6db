"""A guess at the language of texts from their script and their stop words: rough, offline, and open about it."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from bm25s import stopwords

_CHARACTERS = 2_000  # of a text; its beginning tells enough
_LEAST_SHARE = 0.05  # of all words: fewer stop words say nothing
_LEAST_WORDS = 3  # different ones: a lone "in" is no English
_MARGIN = 1.2  # related languages share words: the guess must be well ahead of the next one

_LISTED = ("Danish", "Dutch", "French", "German", "Italian", "Norwegian", "Portuguese", "Russian", "Spanish", "Swedish")
_STOP_WORDS = {
    **{language: getattr(stopwords, f"STOPWORDS_{language.upper()}") for language in (*_LISTED, "Turkish")},
    "English": stopwords.STOPWORDS_EN_PLUS,
    "Polish": ("na", "nie", "się", "do", "to", "jest", "że", "jak", "po", "od", "za", "dla", "oraz", "są", "co"),
}
# Letters stand alone in code and formulas too.
_WORDS = {language: {word for word in words if len(word) > 1} for language, words in _STOP_WORDS.items()}
# Scripts that are those of one language, by the first word of their characters' names in Unicode.
_SCRIPTS = {"HANGUL": "Korean", "GREEK": "Greek", "HEBREW": "Hebrew", "THAI": "Thai", "ARMENIAN": "Armenian"}
_LEAST_KANA = 0.1  # of letters: Japanese mixes them with Chinese characters


@dataclass(frozen=True)
class LanguageGuess:
    """What a sample of texts looks like.

    Attributes:
        language: name of the language, None where nothing speaks for one.
        script: the script that most letters belong to, as Unicode calls it; None where there are no letters.
        script_share: of letters.
        stop_word_share: of words, those that are stop words of `language`; 0 where the script decided.
    """

    language: str | None
    script: str | None = None
    script_share: float = 0.0
    stop_word_share: float = 0.0

    def __str__(self) -> str:
        """The guess in words, with what it rests on."""
        if self.script is None:
            return "guess: none (no letters)"
        script = f"{self.script.title()} script {self.script_share:.0%} of letters"
        if self.language is None:
            return f"guess: none ({script}, no list of stop words fits)"
        words = f", stop words {self.stop_word_share:.0%} of words" if self.stop_word_share else ""
        return f"guess: {self.language} ({script}{words})"


def guess_language(texts: Sequence[str]) -> LanguageGuess:
    """Guess from scripts and the stop words of thirteen languages.

    >>> guess_language(["Where does the water of the river go in winter?"]).language
    'English'
    >>> print(guess_language(["Wo ist die Quelle von dem Fluss, und wie lang ist er?"]))
    guess: German (Latin script 100% of letters, stop words 75% of words)
    >>> guess_language(["x = y ** 2"]).language is None
    True
    """
    texts = [text[:_CHARACTERS] for text in texts]
    scripts: Counter[str] = Counter()
    for character, count in Counter(chain.from_iterable(texts)).items():
        if character.isalpha():
            scripts[unicodedata.name(character, "UNKNOWN").split()[0]] += count
    letters = scripts.total()
    if not letters:
        return LanguageGuess(None)
    script, count = scripts.most_common(1)[0]
    share = count / letters
    if script in ("HIRAGANA", "KATAKANA", "CJK"):
        kana = (scripts["HIRAGANA"] + scripts["KATAKANA"]) / letters
        return LanguageGuess("Japanese" if kana > _LEAST_KANA else "Chinese", script, share)
    if script in _SCRIPTS:
        return LanguageGuess(_SCRIPTS[script], script, share)
    words = Counter(word for text in texts for token in text.lower().split() if (word := token.strip(".,;:?!¿¡()\"'")))
    known = Counter({language: sum(words[word] for word in stop_words) for language, stop_words in _WORDS.items()})
    (language, best), (_, second) = known.most_common(2)
    sure = len(_WORDS[language] & words.keys()) >= _LEAST_WORDS
    if not sure or best < max(_LEAST_SHARE * words.total(), _MARGIN * second):
        return LanguageGuess(None, script, share)
    return LanguageGuess(language, script, share, best / words.total())
