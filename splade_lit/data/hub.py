"""Sources of text by file, folder or Hub id: which files they are, and their columns as a memory-mapped data set."""

import json
import logging
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import xxhash
import yaml
from datasets.exceptions import DatasetNotFoundError

from splade_lit.core.errors import UserError
from splade_lit.core.files import Folder, cache_folder, replace_text, whole_file
from splade_lit.core.progress import counted
from splade_lit.core.tables import (
    BATCH_ROWS,
    FORMATS,
    Values,
    column_names,
    file_kind,
    read_numbers,
    read_rows,
    read_unique,
)
from splade_lit.core.text import Mender, parse_json, warn_once

# These log what is raised right after, and that a folder has no README.md, which it need not have.
logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)


@dataclass(frozen=True)
class TextSource:
    """One split of a data set, whose columns are read as strings.

    Its columns are those of the first of its files; the commit is that of a Hub id, if it is known. With `no_header`,
    the files are csv or tsv without a line of names, and `columns` says what they hold.
    """

    source: str
    files: tuple[Path, ...]
    columns: tuple[str, ...]
    cache_dir: Folder = None
    commit: str | None = None
    no_header: bool = False

    def read(self, columns: Sequence[str], id_column: bool = False) -> datasets.Dataset:
        """Columns in a file of the cache that is mapped into memory; a text that is not there is None.

        The file is made once for the files of the source as they are now. Where it cannot be written, the texts are
        kept in memory. With `id_column`, the first column holds ids, which no two rows share. A UserError says that a
        column is missing or holds no text, that an id is missing or doubled, or that there are no rows.
        """
        path = self._cached(list(columns), id_column).with_suffix(".arrow")
        replaced = path.with_suffix(".replaced")  # how many characters, if any
        mend = Mender()
        schema = pa.schema([(name, pa.string()) for name in columns])
        try:
            if (dataset := _kept(path)) is not None:
                mend.count = int(replaced.read_text()) if replaced.is_file() else 0
            else:
                with whole_file(path) as temporary, pa.OSFile(str(temporary), "wb") as file:
                    with pa.ipc.new_stream(file, schema) as writer:
                        for batch in self._batches(schema, id_column, mend):
                            writer.write_batch(batch)
                    if mend.count:
                        replace_text(replaced, str(mend.count))
                dataset = datasets.Dataset.from_file(str(path))
        except OSError as error:
            place = path.parents[1]
            warn_once(f"Texts and tokens are kept in memory: {place} cannot be written ({error.strerror}).")
            mend = Mender()
            dataset = datasets.Dataset(pa.Table.from_batches(self._batches(schema, id_column, mend), schema))
        mend.report(self.source)
        return dataset

    def numbers(self, columns: Sequence[str], width: int) -> np.ndarray:
        """fp32 `[rows, width]`: the numbers of columns, or of one column of lists; NaN where there is none.

        They are read once for the files as they are now. A UserError is that of `read_numbers`, or says that a row has
        not as many.
        """
        path = self._cached(list(columns), "numbers", width).with_suffix(".npy")
        with suppress(OSError, ValueError, EOFError):
            return np.load(path)
        found = []
        for file in self.files:
            for line, numbers in read_numbers(file, columns):
                if numbers and len(numbers) != width:
                    names = f"{', '.join(columns)}: {len(numbers)} numbers"
                    raise UserError(f"{file}, line {line}: {names} where the row has {width} columns of documents.")
                found.append(numbers or [np.nan] * width)
        table = np.array(found, np.float32).reshape(-1, width)
        with suppress(OSError), whole_file(path) as temporary, temporary.open("wb") as writer:
            np.save(writer, table)
        return table

    def _cached(self, *what: object) -> Path:
        """Where in the cache that stands which is made of the files as they are now; the ending is still to come."""
        state = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        key = xxhash.xxh3_64_hexdigest(repr((state, *what)).encode("utf-8", "surrogatepass"))
        return cache_folder(self.cache_dir) / "texts" / key

    def rows(self, columns: Sequence[str], id_column: bool, mend: Mender) -> Iterator[Values]:
        """The rows of `read` one by one, past the cache; that two share an id is known only after the last."""
        if id_column:
            return read_unique(self.files, columns, mend, self._names)
        rows = (read_rows(path, columns, mend=mend, names=self._names) for path in self.files)
        return (values for of_file in rows for _, values in of_file)

    @property
    def _names(self) -> tuple[str, ...] | None:
        return self.columns if self.no_header else None

    def _batches(self, schema: pa.Schema, id_column: bool, mend: Mender) -> Iterator[pa.RecordBatch]:
        rows = self.rows(schema.names, id_column, mend)
        parts = iter(lambda: list(islice(rows, BATCH_ROWS)), [])
        num_rows = 0
        for part in counted(parts, f"reading {self.source}", "rows"):
            yield pa.record_batch([pa.array(values, pa.string()) for values in zip(*part, strict=True)], schema)
            num_rows += len(part)
        if num_rows == 0:
            raise UserError(f"{self.source}: the data set has no rows.")


def open_texts(
    source: str, config: str | None = None, split: str = "train", revision: str | None = None, cache_dir: Folder = None
) -> TextSource:
    """One split of a data set, none of its rows read yet.

    The source is a Hub id, a folder in the layout of a Hub data set, or a file, which is one split whatever its name;
    other arguments are the settings of `PairsDataModule`. A UserError says that the source cannot be reached or read,
    or has no such configuration or split.
    """
    check_source(source)
    path, commit = local_path(source), None
    with plain_errors(source):
        if path.is_file():
            if path.stat().st_size == 0:
                raise UserError(f"{source}: the file is empty.")
            files = [str(path)]
        elif path.is_dir():
            files = _files_of(datasets.load_dataset_builder(str(path), config), source, split)
        else:
            files, commit = _hub_files(source, config, split, revision, cache_dir)
    paths = tuple(map(Path, files))
    return TextSource(source, paths, tuple(column_names(paths[0])), cache_dir, commit)


def _kept(path: Path) -> datasets.Dataset | None:
    """The texts of a file that was made before; None if there is none, or one that is not whole, which is removed."""
    if not path.is_file():
        return None
    try:
        return datasets.Dataset.from_file(str(path))
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # not by what is in the file
        warn_once(f"{path} is not whole and is built again.")
        path.unlink()
        return None


def local_path(source: str) -> Path:
    """The source as a path, `~` replaced."""
    return Path(os.path.expanduser(source))


def check_source(source: str) -> None:
    """Raise a UserError if a source that can only be a path is not there."""
    path = local_path(source)
    is_file = path.suffix.lower() in (*FORMATS, ".gz")
    is_path = source.startswith(("/", ".", "~")) or source.count("/") > 1 or is_file
    if is_path and not path.exists():
        raise UserError(f"{source}: there is no such file or folder.")


def folder_splits(folder: str, config: str) -> list[str]:
    """The names of the splits of one configuration of a folder."""
    with plain_errors(folder):
        return list(datasets.load_dataset_builder(os.path.expanduser(folder), config).config.data_files)


def _files_of(builder: datasets.DatasetBuilder, source: str, split: str) -> list[str]:
    files = builder.config.data_files
    if split not in files:
        raise UserError(f'{source}: Unknown split "{split}". Should be one of {list(files)}.')
    if not any(file_kind(Path(file)) in FORMATS for file in files[split]):
        raise FileNotFoundError(source)
    return [str(file) for file in files[split]]


def _hub_files(
    source: str, config: str | None, split: str, revision: str | None, cache_dir: Folder
) -> tuple[list[str], str | None]:
    """The files of a Hub id in the Hub's cache, and their commit; kept in ours, for days without a network."""
    key = xxhash.xxh3_64_hexdigest(repr((source, config, split, revision)).encode())
    known = cache_folder(cache_dir) / "texts" / f"{key}.json"
    try:
        builder = datasets.load_dataset_builder(source, config, revision=revision)
    except ConnectionError:
        if known.is_file():
            files, commit = parse_json(known.read_text(encoding="utf-8"))
            return files, commit
        raise
    if builder.config.data_files is None:  # no network, but prepared by `datasets` itself
        files = [file["filename"] for file in builder.as_dataset(split).cache_files]
        return files, _commit_in(files[0])
    urls = _files_of(builder, source, split)
    files, commit = datasets.DownloadManager().download(urls), _commit_in(urls[0])
    replace_text(known, json.dumps([files, commit]))
    return files, commit


def _commit_in(place: str) -> str | None:
    """The commit that the address of a file on the Hub, or its place in the cache of `datasets`, names."""
    found = re.search(r"[@/]([0-9a-f]{40})/", place)
    return found[1] if found else None


@contextmanager
def plain_errors(source: str) -> Iterator[None]:
    """Turn what `datasets` raises where it finds no data set into a UserError of one sentence."""
    try:
        yield
    except (OSError, ValueError, yaml.YAMLError) as error:
        what = f"cannot be read: {textwrap.shorten(str(error), 300, placeholder=' ...')}"
        if isinstance(error, ConnectionError):  # the Hub cannot be reached, and its cache has nothing
            what = "no such file or folder here, and the Hugging Face Hub cannot be reached; "
            what += "check the path, connect to the network, or fill the cache first."
        elif isinstance(error, DatasetNotFoundError):
            what = "no such data set on the Hugging Face Hub, and no such file or folder."
        elif isinstance(error, FileNotFoundError | NotADirectoryError):
            what = "the folder holds no data set (parquet, jsonl or csv files)."
        elif isinstance(error, yaml.YAMLError):
            what = "the YAML at the head of its README.md is damaged."
        raise UserError(f"{source}: {what}") from error
