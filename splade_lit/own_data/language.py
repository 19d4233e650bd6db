"""A guess at the language of texts from their script and their stop words: rough, offline, and open about it."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_CHARACTERS = 2_000  # of a text; its beginning tells enough
_LEAST_SHARE = 0.05  # of all words: fewer stop words tell nothing
_LEAST_WORDS = 3  # different ones: a lone "y" or "in" is no Spanish and no English
_MARGIN = 1.2  # related languages share words: the guess must be well ahead of the next one

_STOP_WORDS = {
    "English": "the of and to in is was for on that by it with as are this be from at which or an what how",
    "German": "der die und das in den von zu mit ist des im für auf nicht ein eine dem als auch wird werden wie",
    "French": "le la les de des et du un une en est que dans pour qui au sur par pas ce il elle aux avec sont",
    "Spanish": "el la los las de que y en un una del por con para es se lo como su al más pero sus",
    "Italian": "il di che la e un una per del della è non con sono gli le nel alla dei si da come anche",
    "Portuguese": "o a os as de que e do da em um uma para com não por no na dos se ao mais como",
    "Dutch": "de het een van en in is dat op te met voor zijn niet aan er om ook als bij door wordt",
    "Swedish": "och att det som en på är av för med den till inte om ett har i var sig men",
    "Polish": "i w na z nie się do to jest że o jak po od za przez dla oraz są co",
}
_WORDS = {language: frozenset(words.split()) for language, words in _STOP_WORDS.items()}
# Scripts that are those of one language, by the first word of their characters' names in Unicode.
_SCRIPTS = {"HANGUL": "Korean", "GREEK": "Greek", "HEBREW": "Hebrew", "THAI": "Thai", "ARMENIAN": "Armenian"}
_KANA = ("HIRAGANA", "KATAKANA")
_LEAST_KANA = 0.1  # of letters: Japanese mixes them with Chinese characters


@dataclass(frozen=True)
class LanguageGuess:
    """What a sample of texts looks like.

    Attributes:
        language: name of the language, None where nothing speaks for one.
        script: the script that most letters belong to, as Unicode calls it; None where there are no letters.
        script_share: of letters.
        stop_word_share: of words, those that are stop words of `language`; 0 where the script told the language.
    """

    language: str | None
    script: str | None
    script_share: float
    stop_word_share: float

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
    """Guess from scripts and the stop words of nine languages.

    >>> guess_language(["Where does the water of the river go in winter?"]).language
    'English'
    >>> print(guess_language(["Wo ist die Quelle von dem Fluss, und wie lang ist er?"]))
    guess: German (Latin script 100% of letters, stop words 58% of words)
    >>> guess_language(["x = y ** 2"]).language is None
    True
    """
    texts = [text[:_CHARACTERS] for text in texts]
    scripts = _script_counts(texts)
    letters = sum(scripts.values())
    if not letters:
        return LanguageGuess(None, None, 0.0, 0.0)
    script, count = scripts.most_common(1)[0]
    share = count / letters
    if script == "LATIN":
        language, words = _latin_language(texts)
        return LanguageGuess(language, script, share, words)
    if script in (*_KANA, "CJK"):
        kana = sum(scripts[name] for name in _KANA) / letters
        return LanguageGuess("Japanese" if kana > _LEAST_KANA else "Chinese", script, share, 0.0)
    return LanguageGuess(_SCRIPTS.get(script), script, share, 0.0)


def _script_counts(texts: Sequence[str]) -> Counter[str]:
    characters: Counter[str] = Counter()
    for text in texts:
        characters.update(text)
    scripts: Counter[str] = Counter()
    for character, count in characters.items():
        if character.isalpha():
            scripts[unicodedata.name(character, "UNKNOWN").split()[0]] += count
    return scripts


def _latin_language(texts: Sequence[str]) -> tuple[str | None, float]:
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for token in text.lower().split() if (word := token.strip(".,;:?!()\"'")))
    total = sum(words.values())
    shares = {
        language: sum(words[word] for word in stop_words) / total if total else 0.0
        for language, stop_words in _WORDS.items()
    }
    (language, best), (_, second) = sorted(shares.items(), key=lambda item: -item[1])[:2]
    sure = len(_WORDS[language] & words.keys()) >= _LEAST_WORDS
    return (language, best) if sure and best >= max(_LEAST_SHARE, _MARGIN * second) else (None, 0.0)
