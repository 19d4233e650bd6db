"""How all charts look: size, title, colours that tell apart for everyone, text that matplotlib can draw."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The palette of Okabe and Ito (2008), which people with any colour vision tell apart; yellow is too pale for lines.
BLACK, GREY = "#000000", "#999999"
ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILLION, PURPLE, YELLOW = "#D55E00", "#CC79A7", "#F0E442"
COLOURS = (GREEN, BLUE, YELLOW, ORANGE, VERMILLION, PURPLE, SKY, GREY)
_TITLE_CHARACTERS = 90
_LEAST_HEIGHT = 2.6


def new_figure(title: str, panels: int = 1, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """A chart with the finding as its title, and its panels from left to right."""
    figure = Figure(figsize=(10.0, max(height, _LEAST_HEIGHT)), dpi=100, layout="constrained")
    figure.suptitle(textwrap.fill(title, _TITLE_CHARACTERS), x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def label(token: str) -> str:
    """A token as matplotlib can draw it: characters that its font lacks as code points.

    >>> label("##s"), label(chr(0x4E2D))
    ('##s', 'U+4E2D')
    """
    return plain("".join(c if ord(c) < 0x2E80 else f"U+{ord(c):04X}" for c in token))


def plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def shorten(text: str, characters: int = 56) -> str:
    """A text or a name cut in its middle: the end of a name tells most.

    >>> shorten("scipy.stats.norm.rvs", 11)
    'scip....rvs'
    """
    text = " ".join(text.split())
    tail = (characters - 3) // 2 if " " not in text else 0
    return text if len(text) <= characters else f"{text[: characters - 3 - tail]}...{text[len(text) - tail :]}"


def mean(values: np.ndarray) -> float:
    """The mean, 0 of nothing."""
    return float(np.mean(values)) if len(values) else 0.0


def percent(part: int, whole: int) -> str:
    """A share as whole percent."""
    return f"{part / max(whole, 1):.0%}"
