"""Command lines and YAML files whose mistakes end in one sentence: which setting, in which file, what it could be."""

import argparse
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from splade_lit.core.errors import UserError

# The first of the problems that the parser lists where a value can be of several types: that with the class given.
_CLASS_PROBLEM = re.compile(
    r"Problem with given class_path '([^']+)':\s*(.+?)(?=\n\s*- |\n\s*Given value|\Z)", re.DOTALL
)


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` that takes options by their whole names only and raises what is wrong as a `UserError`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise the message.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; {self.prog} --help lists the options.")


def positive_int(text: str) -> int:
    """A whole number from 1 on, as the type of an option.

    >>> positive_int("3")
    3
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def parse_settings(
    parser: jsonargparse.ArgumentParser, arguments: Sequence[str], linked: Mapping[str, str]
) -> jsonargparse.Namespace:
    """The settings that YAML files (`--config`) and a command line give.

    Args:
        parser: made with `exit_on_error=False`.
        arguments: the command line.
        linked: settings that are taken from another one and so cannot be given, with that other one.

    Raises:
        UserError: a file is missing or is not YAML, a setting is unknown, or a value does not fit.
    """
    # Public enough: argparse keeps no other list of its options.
    known = {action.dest for action in parser._actions if action.dest not in ("help", "print_config", "config")}
    files = list(_config_files(arguments))
    for path in files:
        _check_file(path, known - set(linked), linked)
    try:
        return parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        key = re.match(r'Parser key "([^"]+)"', str(error))
        in_file = key and len(files) == 1 and not any(option.startswith(f"--{key[1]}") for option in arguments)
        raise UserError(f"{files[0]}: " * bool(in_file) + _sentence(str(error), known)) from error


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean a or b?` for the names most like this one, else a full stop.

    >>> did_you_mean("bach_size", ["batch_size", "seed"])
    '; did you mean batch_size?'
    >>> did_you_mean("x", ["batch_size", "seed"])
    '.'
    """
    near = difflib.get_close_matches(name, list(names), n=2, cutoff=0.7)
    return f"; did you mean {' or '.join(near)}?" if near else "."


def _config_files(arguments: Sequence[str]) -> Iterator[str]:
    for argument, following in zip(arguments, (*arguments[1:], None), strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c") and (value := value if equals else following or ""):
            yield value


def _check_file(path: str, known: set[str], linked: Mapping[str, str]) -> None:
    """Check that a file is YAML and has no unknown setting at its two upper levels."""
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file; --config takes a YAML file such as experiments/smoke.yaml.")
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else ""
        raise UserError(f"{path} is not YAML{place}.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings; write them as NAME: VALUE, as in experiments/smoke.yaml.")
    groups = {name.partition(".")[0] for name in known if "." in name}
    for group, values in settings.items():
        if group not in groups:
            if group not in known:
                raise UserError(f"{path}: there is no setting {group}{did_you_mean(str(group), known | groups)}")
        elif not isinstance(values, dict):
            raise UserError(f"{path}: {group} must hold settings as NAME: VALUE, not {values!r}.")
        else:
            _check_group(path, group, values, known, linked)


def _check_group(path: str, group: str, values: dict[Any, Any], known: set[str], linked: Mapping[str, str]) -> None:
    names = [name.partition(".")[2] for name in known if name.startswith(f"{group}.")]
    for name in values:
        if f"{group}.{name}" in linked:
            raise UserError(f"{path}: {group}.{name} is taken from {linked[f'{group}.{name}']}; set that one instead.")
        if name not in names:
            raise UserError(f"{path}: {group} has no setting {name}{did_you_mean(str(name), names)}")


def _sentence(message: str, known: set[str]) -> str:
    """What the parser says over many lines, in one sentence."""
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        option = found[1].partition("=")[0]
        if not option.startswith("--"):
            return f"{option!r} belongs to no option; write --NAME VALUE or --NAME=VALUE."
        return f"there is no option {option}{did_you_mean(option, (f'--{name}' for name in known))}"
    if found := re.match(r'Parser key "([^"]+)":?\s*(.*)', message, re.DOTALL):
        return _value_sentence(found[1], found[2])
    if found := re.match(r'Linked "(.+)" must be given via "(.+)"', message):
        return f"{found[1]} is taken from {found[2]}; set that one instead."
    return f"{_one_line(message).rstrip('.')}."


def _value_sentence(key: str, problem: str) -> str:
    if found := _CLASS_PROBLEM.search(problem):
        return _class_sentence(key, found[1], _one_line(found[2]))
    if found := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", problem):
        return f"{key}: {found[1]} is no {found[2]}; give the path of one."
    if found := re.search(r"Expected a dot import path string: (.*)", problem):
        return f"{key}: there is no class {found[1]}; give its whole path, such as lightning.pytorch.callbacks.Timer."
    if found := re.search(r"Subtypes: \[(.*?)\]\n.*Given value: (.*)", problem, re.DOTALL):
        return f"{key} is {_one_line(found[2])}, but must be {_type_name(found[1])}."
    if found := re.search(r"Expected a (.*)\. Got value: (.*)", problem, re.DOTALL):
        return f"{key} is {_one_line(found[2])}, but must be {_type_name(found[1])}."
    return f"{key}: {_one_line(problem).rstrip('.')}."


def _class_sentence(key: str, path: str, problem: str) -> str:
    module, _, name = path.rpartition(".")
    if found := re.match(r"Option '(.+)' is not accepted", problem):
        return f"{key}: {name} has no setting {found[1]}{did_you_mean(found[1].partition('.')[0], _settings_of(path))}"
    if "has no attribute" in problem:
        return f"{key}: there is no class {name} in {module}{did_you_mean(name, dir(import_module(module)))}"
    if problem.startswith("No module named"):
        return f"{key}: there is no class {path} ({problem})."
    if found := re.match(r'Parser key "([^"]+)":?\s*(.*)', problem):
        return f"{key}: {_value_sentence(f'{name}.{found[1]}', found[2])}"
    return f"{key}: {name}: {problem.rstrip('.')}."


def _settings_of(path: str) -> list[str]:
    """Names of what a class takes, and of what lies beside a class path."""
    module, _, name = path.rpartition(".")
    return ["class_path", "init_args", *signature(getattr(import_module(module), name)).parameters]


def _type_name(types: str) -> str:
    """Types as a person writes them.

    >>> _type_name("<class 'int'>, <class 'NoneType'>")
    'int or null'
    >>> _type_name("typing.Literal['max', 'sum']")
    'max or sum'
    """
    types = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", types).replace("'", "")
    types = re.sub(r"<class ([^>]*)>", r"\1", types).replace("NoneType", "null")
    types = re.sub(r"[\w.]+\.(\w+)", r"\1", types)
    return " or ".join(dict.fromkeys(types.split(", ")))


def _one_line(text: str) -> str:
    return " ".join(text.split())
