"""`datasets.load_dataset` with the errors of everyday use told in one sentence each."""

import glob
import logging
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import xxhash
import yaml
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from splade_lit.core.errors import UserError

FILE_BUILDERS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",  # a row a line, in the column `text`
}
_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0", "No columns to parse")

# These log what is raised right after, and that a folder has no README.md, which it need not have.
logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)


def read_dataset(
    source: str, config: str | None = None, split: str = "train", revision: str | None = None
) -> datasets.Dataset:
    """One split of a data set.

    Args:
        source: a Hub id, a folder in the layout of a Hub data set, or a file (jsonl, csv, tsv, txt, gzipped or not, or
            parquet).
        config: which configuration, if there are several.
        split: which split; a file is one split, whatever its name.
        revision: branch, tag or commit of a Hub id.

    Raises:
        UserError: the source is not a data set, cannot be reached, has no such configuration or split, or cannot be
            read.
    """
    check_source(source)
    path = local_path(source)
    with plain_errors(source):
        if path.is_file():
            return _read_file(path)
        if path.is_dir():
            return datasets.load_dataset(str(path), config, split=split, cache_dir=_folder_cache(path))
        return datasets.load_dataset(source, config, split=split, revision=revision)


def _folder_cache(folder: Path) -> str:
    """A cache for what the folder holds now.

    `datasets` knows a folder whose README.md lists its files by its name and that README alone: it would go on giving
    the rows of files that have changed since, or of another folder of the same name.
    """
    files = sorted(path for path in folder.resolve().rglob("*") if path.is_file())
    state = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in ((path, path.stat()) for path in files)]
    return os.path.join(datasets.config.HF_DATASETS_CACHE, "folders", xxhash.xxh3_64_hexdigest(repr(state).encode()))


def local_path(source: str) -> Path:
    """The source as a path, `~` replaced."""
    return Path(os.path.expanduser(source))


def check_source(source: str) -> None:
    """Check what can be checked at once: a source that can only be a path must be there.

    Raises:
        UserError: it is not.
    """
    path = local_path(source)
    is_file = path.suffix.lower() in (*FILE_BUILDERS, ".gz")
    is_path = source.startswith(("/", ".", "~")) or source.count("/") > 1 or is_file
    if is_path and not path.exists():
        raise UserError(f"{source}: there is no such file or folder.")


def read_config_splits(source: str, config: str) -> list[str]:
    """The names of the splits of one configuration.

    Raises:
        UserError: as `read_dataset`.
    """
    with plain_errors(source):
        return datasets.get_dataset_split_names(os.path.expanduser(source), config)


def require_columns(dataset: datasets.Dataset, columns: Sequence[str], source: str) -> None:
    """Check that the columns are there.

    Raises:
        UserError: some are not.
    """
    if missing := [column for column in columns if column not in dataset.column_names]:
        there = ", ".join(dataset.column_names)
        raise UserError(f"{source}: no column {', '.join(missing)}; its columns are {there}.")


def require_text(dataset: datasets.Dataset, columns: Sequence[str], source: str) -> None:
    """Check that the columns are there and hold text.

    Raises:
        UserError: some do not.
    """
    require_columns(dataset, columns, source)
    for column in columns:
        feature = dataset.features[column]
        kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
        if kind not in ("string", "large_string"):
            raise UserError(f"{source}: the column {column} must hold text, one string a row, but holds {kind}.")


def _read_file(path: Path) -> datasets.Dataset:
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in FILE_BUILDERS or name.endswith(".parquet.gz"):
        endings = ", ".join(FILE_BUILDERS)
        raise UserError(f"{path}: not a data file by its name; it must end in {endings} (all but .parquet also .gz).")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty.")
    options: dict[str, Any] = {}
    if suffix in (".csv", ".tsv"):
        options = {"sep": "\t" if suffix == ".tsv" else ",", "keep_default_na": False}  # "null" and "NA" are texts
    return datasets.load_dataset(FILE_BUILDERS[suffix], data_files=glob.escape(str(path)), split="train", **options)


@contextmanager
def plain_errors(source: str) -> Iterator[None]:
    """What reading a data set can raise, told in one sentence.

    Raises:
        UserError: in place of it.
    """
    try:
        yield
    except UserError:
        raise
    except ConnectionError as error:  # what `datasets` raises when the Hub cannot be reached and nothing is cached
        raise UserError(
            f"{source}: no such file or folder here, and the Hugging Face Hub cannot be reached; "
            "check the path, connect to the network, or fill the cache first."
        ) from error
    except DatasetNotFoundError as error:
        raise UserError(f"{source}: no such data set on the Hugging Face Hub, and no such file or folder.") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{source}: the folder holds no data set (parquet, jsonl or csv files).") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: the YAML at the head of its README.md is damaged.") from error
    except (DatasetGenerationError, pa.ArrowException, EOFError, ValueError, OSError, StopIteration) as error:
        cause = textwrap.shorten(str(error.__cause__ or error), 300, placeholder=" ...")
        if not cause or any(phrase in cause for phrase in _NO_ROWS):
            raise UserError(f"{source}: the data set has no rows.") from error
        raise UserError(f"{source}: cannot be read: {cause}") from error
