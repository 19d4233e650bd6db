"""Checks that settings are in range, before any work."""

from collections.abc import Sequence
from math import inf, isfinite

from splade_lit.core.errors import UserError

LARGEST_SEED = 2**32 - 1  # that numpy takes


def check_range(owner: str, least: float = -inf, most: float = inf, **settings: float | None) -> None:
    """Raise a UserError if a setting is not finite, or not from `least` to `most`; None is not given, and passes.

    `owner` is what they belong to, such as `data` or `TermTable`, or empty for settings of a command.

    >>> check_range("data", 1, batch_size=16, max_pairs=None)
    >>> check_range("data", 1, batch_size=0)
    Traceback (most recent call last):
    splade_lit.core.errors.UserError: data.batch_size is 0; it must be at least 1.
    """
    for name, value in settings.items():
        if value is not None and not (isfinite(value) and least <= value <= most):
            ends = "finite" if least == -inf else f"at least {least}" if most == inf else f"from {least} to {most}"
            raise UserError(f"{owner}{'.' if owner else ''}{name} is {value}; it must be {ends}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a UserError if a setting is none of several words."""
    if value not in choices:
        raise UserError(f"{name} is {value}; it must be {' or '.join(choices)}.")
