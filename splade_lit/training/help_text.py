"""The settings of a run, as `--help` tells them.

They are read from the sources of the classes that take them: loading these takes longer than help should.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

from docstring_parser import parse

from splade_lit.command_line.arguments import CommandParser

LINKS = {
    "data.tokenizer": "model.base_model",
    "data.prompts": "model.base_model",
    "data.max_query_tokens": "model.max_query_tokens",
    "data.max_document_tokens": "model.max_document_tokens",
}
"""Settings that are taken from another one, with that one."""

_CLASSES = {
    "model": ("splade_lit", "training/module.py", "SpladeModule"),
    "data": ("splade_lit", "data/datamodule.py", "PairsDataModule"),
    "trainer": ("lightning", "pytorch/trainer/trainer.py", "Trainer"),
}


def help_text() -> str:
    """What `python -m splade_lit.fit --help` prints: every setting with its type, its default and what it does."""
    parser = CommandParser(
        "fit",
        "Train an encoder as a YAML file says.",
        usage="%(prog)s --config FILE [--config FILE ...] [--GROUP.NAME VALUE ...]",
        epilog="A setting that takes a class: --GROUP.NAME.help CLASS_PATH lists what that class takes.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; later files and options override")
    parser.add_argument("--print_config", action="store_true", help="print all settings as YAML and do nothing else")
    parser.add_argument("--seed_everything", metavar="int", help="seed of everything that is random (default: 12)")
    parser.add_argument(
        "--ckpt_path",
        metavar="FILE",
        help="Checkpoint to resume from; `last` for the run's own, or a new run if it has none.",
    )
    parser.add_argument("--overwrite", metavar="bool", help="Start again in a folder that holds a run.")
    for group, (package, file, name) in _CLASSES.items():
        (folder,) = find_spec(package).submodule_search_locations  # type: ignore[union-attr, misc]
        _add_settings(parser, group, Path(folder, file).read_text(encoding="utf-8"), name)
    return parser.format_help()


def _add_settings(parser: CommandParser, group: str, source: str, class_name: str) -> None:
    """Add what a class takes as options; its docstring, or that of `__init__`, has the section `Args`."""
    tree = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == class_name)
    init = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    docs = [parse(ast.get_docstring(node) or "") for node in (tree, init)]
    texts = {entry.arg_name: entry.description or "" for doc in docs for entry in doc.params}
    section = parser.add_argument_group(group, (docs[0].short_description or "").replace("%", "%%"))
    arguments = init.args.args + init.args.kwonlyargs
    given = [*init.args.defaults, *init.args.kw_defaults]
    defaults = [*[None] * (len(arguments) - len(given)), *given]
    for argument, default in zip(arguments[1:], defaults[1:], strict=True):
        if (name := f"{group}.{argument.arg}") not in LINKS:
            value = f" (default: {ast.unparse(default)})" if default else ""
            text = " ".join(f"{texts.get(argument.arg, '')}{value}".split()).replace("%", "%%")
            type_name = ast.unparse(argument.annotation) if argument.annotation else "value"
            section.add_argument(f"--{name}", metavar=type_name, help=text)
