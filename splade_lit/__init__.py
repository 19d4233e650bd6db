"""Train, measure, explain and ship asymmetric inference-free SPLADE encoders with PyTorch Lightning.

The names that a user types are here; they are imported when first used, so that `import splade_lit` takes no time.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "AsymmetricSparseEncoder": "splade_lit.encoder.model",
    "IdfQueryEncoder": "splade_lit.encoder.query",
    "MlmDocumentEncoder": "splade_lit.encoder.document",
    "PairsDataModule": "splade_lit.data.datamodule",
    "RetrievalTask": "splade_lit.data.tasks",
    "SpladeModule": "splade_lit.training.module",
    "UserError": "splade_lit.core.errors",
    "load_query_side": "splade_lit.encoder.query_side",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
