"""`datasets.load_dataset` with the errors of everyday use told in one sentence each."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from splade_lit.errors import UserError

FILE_BUILDERS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",  # a row a line, in the column `text`
}


def read_dataset(
    source: str, config: str | None = None, split: str = "train", revision: str | None = None
) -> datasets.Dataset:
    """One split of a data set.

    Args:
        source: a Hub id, a folder in the layout of a Hub data set, or a file (jsonl, csv, tsv, parquet; gzipped or
            not).
        config: which configuration, if there are several.
        split: which split; a file is one split, whatever its name.
        revision: branch, tag or commit of a Hub id.

    Raises:
        UserError: the source is not a data set, cannot be reached, has no such configuration or split, or cannot be
            read.
    """
    check_source(source)
    path = Path(source)
    with _plain_errors(source):
        if path.is_file():
            return _read_file(path)
        return datasets.load_dataset(source, config, split=split, revision=None if path.is_dir() else revision)


def check_source(source: str) -> None:
    """Check what can be checked at once: a source that can only be a path must be there.

    Raises:
        UserError: it is not.
    """
    path = Path(source)
    is_path = source.startswith(("/", ".", "~")) or source.count("/") > 1 or path.suffix in (*FILE_BUILDERS, ".gz")
    if is_path and not path.exists():
        raise UserError(f"{source}: there is no such file or folder.")


def read_config_splits(source: str, config: str) -> list[str]:
    """The names of the splits of one configuration.

    Raises:
        UserError: as `read_dataset`.
    """
    with _plain_errors(source):
        return datasets.get_dataset_split_names(source, config)


def require_columns(dataset: datasets.Dataset, columns: Sequence[str], source: str) -> None:
    """Check that the columns are there.

    Raises:
        UserError: some are not.
    """
    if missing := [column for column in columns if column not in dataset.column_names]:
        there = ", ".join(dataset.column_names)
        raise UserError(f"{source}: no column {', '.join(missing)}; its columns are {there}.")


def _read_file(path: Path) -> datasets.Dataset:
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    builder = FILE_BUILDERS.get(suffixes[-1] if suffixes else "")
    if builder is None:
        raise UserError(f"{path}: not a data file by its name; it must end in {', '.join(FILE_BUILDERS)} (or .gz).")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty.")
    options = {"sep": "\t"} if suffixes[-1] == ".tsv" else {}
    return datasets.load_dataset(builder, data_files=str(path), split="train", **options)


@contextmanager
def _plain_errors(source: str) -> Iterator[None]:
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
    except (DatasetGenerationError, pa.ArrowException, StopIteration) as error:
        cause = str(error.__cause__ or error).splitlines()
        raise UserError(f"{source}: cannot be read as a data set: {cause[0] if cause else 'no rows'}") from error
    except (ValueError, OSError) as error:  # unknown configuration or split, with those there are; an unwritable cache
        raise UserError(f"{source}: {str(error).splitlines()[0]}") from error
