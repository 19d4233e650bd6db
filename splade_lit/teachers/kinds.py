"""What kind of model a teacher is, told from the files of its folder, and how it is loaded."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from splade_lit.core.errors import UserError, first_line
from splade_lit.encoder.layout import read_json
from splade_lit.encoder.masked_lm import quiet_transformers

Kind = Literal["cross-encoder", "sentence encoder", "sparse encoder"]

_OF_TYPE: dict[str, Kind] = {
    "CrossEncoder": "cross-encoder",
    "SentenceTransformer": "sentence encoder",
    "SparseEncoder": "sparse encoder",
}
_SPARSE_MODULES = ("Router", "SparseStaticEmbedding", "SpladePooling", "MLMTransformer")


def check_installed(setting: str) -> None:
    """Raise a UserError if sentence-transformers, which runs teachers, is not installed."""
    if find_spec("sentence_transformers") is None:
        raise UserError(
            f"{setting} needs sentence-transformers; run `pip install -c constraints.txt -e '.[teacher]'` first."
        )


def teacher_kind(folder: Path, source: str) -> Kind:
    """The kind of a saved model; a UserError, which calls it `source`, if it is none that scores documents.

    Sentence encoders and sparse encoders have a modules.json, and newer ones the name of their class beside it; a
    cross-encoder classifies sequences; a plain masked-language model is a sparse encoder whose query weights are one.
    """
    config = read_json(folder / "config.json", missing={})
    architectures = config.get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    if (folder / "modules.json").is_file():
        modules = [str(module.get("type")) for module in read_json(folder / "modules.json", kind=list)]
        about = read_json(folder / "config_sentence_transformers.json", missing={})
        return _OF_TYPE.get(str(about.get("model_type"))) or _kind_of_modules(modules)
    if any(name.endswith("ForSequenceClassification") for name in names):
        return "cross-encoder"
    if (folder / "idf.json").is_file() or any(name.endswith("ForMaskedLM") for name in names):
        return "sparse encoder"
    raise UserError(
        f"{source} is no teacher by its files: neither a sentence encoder or sparse encoder (modules.json), nor a "
        f"cross-encoder (an architecture ...ForSequenceClassification in config.json)."
    )


def load_teacher(folder: Path, kind: Kind, device: object = "cpu") -> Any:
    """A saved model as an instance of the class of sentence-transformers for its kind.

    Raises:
        UserError: it cannot be read, or sentence-transformers is not installed.
    """
    check_installed(str(folder))
    with redirect_stdout(io.StringIO()):  # transformers prints there what it will do with W&B, which is not used
        import sentence_transformers
    name = next(name for name, its_kind in _OF_TYPE.items() if its_kind == kind)
    try:
        with quiet_transformers():
            return getattr(sentence_transformers, name)(str(folder), device=str(device)).eval()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(f"{folder} cannot be read as a {kind}: {first_line(error)}.") from error


def _kind_of_modules(modules: Sequence[str]) -> Kind:
    sparse = any(module.rpartition(".")[2] in _SPARSE_MODULES for module in modules)
    return "sparse encoder" if sparse else "sentence encoder"
