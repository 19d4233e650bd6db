"""The one exception of the package that is meant for a person."""


class UserError(Exception):
    """Bad input, told in one sentence: what is wrong and how to mend it.

    Commands print the sentence as `error: ...` and exit with code 2.
    """
