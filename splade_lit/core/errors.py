"""The one exception of the package that is meant for a person, and what other errors say."""


class UserError(Exception):
    """Bad input, in one sentence that commands print before they exit with 2: what is wrong and how to mend it."""


def first_line(error: BaseException) -> str:
    """What an error says first, without the stop at its end, at most 200 characters; its class where it says nothing.

    >>> first_line(ValueError("no such file.")), first_line(KeyError())
    ('no such file', 'KeyError')
    """
    return ((str(error).strip().splitlines() or [""])[0].rstrip(".: ") or type(error).__name__)[:200]
