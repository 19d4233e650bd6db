"""What a model card says of the parts of a loss."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Citation:
    """What to cite for a part: the heading of the entry on a model card, and one BibTeX entry or several."""

    title: str
    bibtex: str


@dataclass(frozen=True)
class PartFacts:
    """A part on a model card: its column in the log without `train/`, its tag after `loss:`, and what to cite."""

    name: str
    tag: str
    citations: list[Citation]
