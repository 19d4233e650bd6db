"""Command lines and YAML files whose mistakes end in one sentence: which setting, in which file, what it could be."""

import argparse
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from math import inf, isfinite, nan
from pathlib import Path
from pkgutil import resolve_name
from textwrap import dedent, shorten
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from splade_lit.core.errors import UserError
from splade_lit.core.renamed import current_names
from splade_lit.core.sources import NANOBEIR_ID

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_CONFIG = re.compile(r"--config(?:=(.*))?|-c")
# What jsonargparse says, from the outside in: a setting, the class that it names, a setting of that class, and so on.
_SETTING = re.compile(r'\s*Parser key "(.+?)":?\s*')
_CLASS = re.compile(r"^( *)(?:- )?Problem with given class_path '(.+)':\n((?:\1 .*\n?)+)", re.MULTILINE)
_UNKNOWN = re.compile(r"(?:Group '(.+)' does not accept option|unrecognized arguments:(?= --)|Option) '?([^'\s=]+)")
_NO_CLASS = re.compile(
    r"Import path .* does not correspond to .*|Expected a dot import path string: .*(?=(?s:.)*class_path)"
)
_VALUE = re.compile(r"Expected a (.+)\. Got value: ((?s:.+))|Subtypes: \[(.+)\]\n(?s:.*)Given value: ((?s:.+))")


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` that takes options by their whole names only and raises what is wrong as a `UserError`."""

    def __init__(self, command: str, description: str, **settings: Any) -> None:
        settings |= {"prog": f"python -m splade_lit.{command}", "allow_abbrev": False}  # argparse names subcommands too
        super().__init__(description=description, **settings)

    def add_shared(self, *names: str, **changes: Any) -> None:
        """Add options that several commands have; `changes` are settings of their own here."""
        for name in names:
            self.add_argument(name, **_SHARED[name] | changes)

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `UserError`."""
        raise UserError(f"{message}; {self.prog} --help lists the options.")


def at_least(least: int) -> Callable[[str], int]:
    """Whole numbers from `least` on, as the type of an option.

    >>> at_least(1)("3")
    3
    """

    def number(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number and at least {least}, not {text}")
        return int(text)

    return number


positive_int = at_least(1)


def number_from(least: float, most: float = inf) -> Callable[[str], float]:
    """Numbers from `least` to `most`, as the type of an option.

    >>> number_from(0, 1)("0.25")
    0.25
    """

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = nan
        if not (isfinite(value) and least <= value <= most):
            ends = f"at least {least:g}" if most == inf else f"from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"must be a number {ends}, not {text}")
        return value

    return number


LIMITS = (
    "--max-query-active-dims",
    "--max-document-active-dims",
    "--min-document-weight",
    "--min-document-weight-share",
)
"""Options for the limits of `splade_lit.encoder.pruning.Pruning`; the first one is that of queries."""

_SHARED: dict[str, dict[str, Any]] = {
    "--model": {"required": True, "help": "folder of a saved model, or its Hub id"},
    "--revision": {"help": "branch, tag or commit of the model on the Hub"},
    "--corpus": {
        "help": "file (jsonl, csv, tsv, parquet, txt; gzipped or not), data set, folder of a test collection, irds:ID, "
        "or task such as docstrings"
    },
    "--text-column": {"default": "text", "help": "name of the column of texts (%(default)s)"},
    "--nanobeir-source": {"default": NANOBEIR_ID, "help": "Hub id or folder of NanoBEIR (%(default)s)"},
    "--nanobeir-revision": {"help": "branch, tag or commit of NanoBEIR on the Hub"},
    "--max-corpus-documents": {
        "type": positive_int,
        "help": "take a sample of each corpus with this many documents, all judged ones among them",
    },
    "--max-query-active-dims": {
        "type": at_least(0),
        "metavar": "N",
        "help": "keep the N largest weights of a query (default: as the model has it; 0: all)",
    },
    "--max-document-active-dims": {
        "type": at_least(0),
        "metavar": "N",
        "help": "keep the N largest weights of a document (default: as the model has it; 0: all)",
    },
    "--min-document-weight": {
        "type": number_from(0),
        "metavar": "W",
        "help": "drop weights of a document below W (default: as the model has it; 0: none)",
    },
    "--min-document-weight-share": {
        "type": number_from(0, 1),
        "metavar": "S",
        "help": "drop weights of a document below S times its largest (default: as the model has it; 0: none)",
    },
    "--device": {"help": "device to encode on, such as cpu or cuda (default: cuda where there is one)"},
}


def read_settings(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The YAML files that a command line gives as `--config`, as they are.

    Raises:
        UserError: a file is missing, is not YAML, or holds no settings.
    """
    following = [*arguments[1:], ""]
    given = [found[1] or following[n] for n, text in enumerate(arguments) if (found := _CONFIG.fullmatch(text))]
    return {path: _read_file(path) for path in given if path}


def parse_settings(parser: "ArgumentParser", arguments: Sequence[str], linked: Mapping[str, str]) -> "Namespace":
    """The settings that YAML files (`--config`) and a command line give, in all of jsonargparse's forms.

    Args:
        parser: made with `exit_on_error=False`.
        arguments: the command line.
        linked: settings that are taken from another one and so cannot be given, with that other one.

    Raises:
        UserError: a file is missing or is not YAML, a setting is unknown, or a value does not fit.
    """
    files = read_settings(arguments)
    options = [argument.partition("=")[0] for argument in arguments]
    for name, source in linked.items():
        places = [f"{path}: " for path in files if _holds(files[path], name)]
        if places or f"--{name}" in options:
            raise UserError(f"{''.join(places[:1])}{name} is taken from {source}; set that one instead.")
    for path, name in itertools.product(files, parser.groups or ()):
        if files[path].get(name, {}) is None:
            raise UserError(f"{path}: {name} must hold settings as NAME: VALUE.")
    try:
        return parser.parse_args([_with_current_names(argument, files) for argument in arguments])
    except argparse.ArgumentError as error:
        # Public enough: argparse keeps no other list of its options.
        key, sentence = _sentence(str(error), [action.dest for action in parser._actions])
        given = any(option.startswith(f"--{key}") for option in options)
        place = next((path for path in reversed(files) if key and not given and _holds(files[path], key)), None)
        raise UserError(f"{place}: {sentence}" if place else sentence) from error


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean a or b?` for the names most like this one, else a full stop.

    >>> did_you_mean("bach_size", ["batch_size", "seed"])
    '; did you mean batch_size?'
    >>> did_you_mean("x", ["batch_size", "seed"])
    '.'
    """
    near = get_close_matches(name, list(names), n=2, cutoff=0.7)
    return f"; did you mean {' or '.join(near)}?" if near else "."


def _read_file(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file; --config takes a YAML file such as experiments/smoke.yaml.")
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else ""
        raise UserError(f"{path} is not YAML{place}.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings; write them as NAME: VALUE, as in experiments/smoke.yaml.")
    return settings


def _with_current_names(argument: str, files: Iterable[str]) -> str:
    """The argument; the text of a file in place of its path where classes that the file names have moved."""
    option = "--config=" if argument.startswith("--config=") else ""
    path = argument.removeprefix(option)
    if path not in files:
        return argument
    before = Path(path).read_text(encoding="utf-8")
    text = current_names(before, path)
    return argument if text == before else option + text


def _holds(settings: Any, key: str) -> bool:
    """Whether a file sets a dotted name, or adds to it."""
    for name in key.split("."):
        if not isinstance(settings, dict) or not {name, f"{name}+"} & settings.keys():
            return False
        settings = settings.get(name, settings.get(f"{name}+"))
    return True


def _sentence(message: str, names: Iterable[str]) -> tuple[str, str]:
    """The setting that is wrong, if one is, and what jsonargparse says of it over many lines, in one sentence."""
    places: list[str] = []
    while found := _SETTING.match(message) or _CLASS.search(message):
        if found.re is _SETTING:
            places.append(found[1])
            message = message[found.end() :]
        else:
            places.append(found[2].rpartition(".")[2])
            message = dedent(found[3])
            names = [] if _UNKNOWN.match(message) is None else signature(resolve_name(found[2])).parameters
    if found := _UNKNOWN.match(message):
        name = f"{found[1]}.{found[2]}" if found[1] else found[2]
        dashes = "--" * name.startswith("--")
        problem = f"there is no setting {name}{did_you_mean(name, (dashes + known for known in names))}"
        return (places or [name])[0], ": ".join([*places, problem])
    if found := _NO_CLASS.search(message):
        whole_path = "a class is named by its whole path, such as lightning.pytorch.callbacks.Timer, not"
        message = found[0].replace("Expected a dot import path string:", whole_path)
    elif found := _VALUE.search(message):
        value, types = found[2] or found[4], found[1] or found[3]
        value = re.sub(r"NestedArg\(key=(.+?), val=(.+)\)", r"{\1: \2}", value)
        return places[0], f"{': '.join(places)} is {shorten(value, 200)}, but must be {_type_name(types)}."
    return "".join(places[:1]), ": ".join([*places, shorten(message, 300)]).rstrip(".") + "."


def _type_name(types: str) -> str:
    """Types as a person writes them.

    >>> _type_name("<class 'int'>, <class 'NoneType'>")
    'int or null'
    >>> _type_name("typing.Literal['max', 'sum']")
    'max or sum'
    >>> _type_name("<class 'a.B'>, collections.abc.Sequence[typing.Union[a.B, typing.Literal['c']]]")
    'B or a list of such'
    """
    types = re.sub(r"[\w.]*Sequence\[[\w.]*Union\[.*\]\]", "a list of such", types)
    types = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", types).replace("'", "")
    types = re.sub(r"<class ([^>]*)>", r"\1", types).replace("NoneType", "null")
    types = re.sub(r"[\w.]+\.(\w+)", r"\1", types)
    return " or ".join(dict.fromkeys(types.split(", ")))
