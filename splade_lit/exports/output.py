"""The folder that an export is written into: export.json, which says what is there, goes first and comes last."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Self

from splade_lit.core.errors import UserError
from splade_lit.core.files import check_not_read, hold_folder, replace_text, whole_file
from splade_lit.core.progress import WorkProgress
from splade_lit.core.text import parse_json

RECORD = "export.json"
_MARK = ".export"  # the format, in a folder that an export has begun to write into
VECTORS = ".vectors"
"""Vectors of a corpus that is encoded first; they stay where the command is stopped."""
_DOCUMENTS_A_FILE = 100_000


@dataclass(frozen=True)
class LinesRecord:
    """What was written: documents, their weights, weights that became 0 and are left out, the factor of impacts."""

    documents: int
    postings: int
    vanished: int = 0
    scale: float | None = None


class OutputFolder:
    """A folder for one format; a context in which no other process writes there.

    Args:
        folder: a new or an empty one, or one that an export of the same format has written to.
        format: its name.
        names: what names of files, or `folder/file`, the format has.
        read: what is read, and so must not be one of the files there.

    Raises:
        UserError: something else is in it, one of these files is read, or it cannot be written.
    """

    def __init__(self, folder: Path, format: str, names: str, read: Iterable[Path] = ()) -> None:
        self.folder, self.format, self._names = folder, format, re.compile(names)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; give the name of a folder.")
        is_ours = self._is_ours()
        for name in sorted(self._there(), key=lambda name: name == RECORD):
            if not is_ours or (name != RECORD and not self._names.fullmatch(name)):
                raise UserError(f"{folder} is in use and holds {name}; give a new or an empty folder.")
            check_not_read(folder / name, read)

    def _is_ours(self) -> bool:
        """Whether an export of this format is there, or one that was stopped."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            if parse_json((self.folder / RECORD).read_text(encoding="utf-8"))["format"] == self.format:
                return True
        with suppress(OSError, ValueError):
            return (self.folder / _MARK).read_text(encoding="utf-8") == self.format
        return False

    def _there(self) -> list[str]:
        paths = self.folder.rglob("*") if self.folder.is_dir() else ()
        found = (path.relative_to(self.folder) for path in paths if path.is_file())
        return [path.as_posix() for path in found if not path.parts[0].startswith(".")]

    def __enter__(self) -> Self:
        """Remove what an earlier export has left."""
        self._held = hold_folder(self.folder)
        replace_text(self.folder / _MARK, self.format)
        for name in [RECORD, *self._there()]:
            (self.folder / name).unlink(missing_ok=True)
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Remove what is needed while writing only, unless the same command will go on with it; let others write."""
        if kind is None:
            shutil.rmtree(self.folder / VECTORS, ignore_errors=True)
            (self.folder / _MARK).unlink(missing_ok=True)
        self._held.release()

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """A place to write a file to; it gets its name once it is whole. OSErrors become UserErrors."""
        try:
            with whole_file(self.folder / name) as path:
                yield path
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror}); free space and try again.") from error

    def write_lines(self, name: str, lines: Iterable[str]) -> int:
        """Write a text file; how many lines it has."""
        count = 0
        with self.new_file(name) as path, path.open("w", encoding="utf-8", newline="\n") as file:
            for line in lines:
                file.write(line)
                file.write("\n")
                count += 1
        return count

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        replace_text(self.folder / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def finish(self, record: Any) -> None:
        """Write export.json: the format and the fields of a dataclass."""
        self.write_json(RECORD, {"format": self.format} | asdict(record))


def compact(value: Any) -> str:
    """JSON in one line, without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_documents(output: OutputFolder, stem: str, lines: Iterator[str], total: int) -> list[str]:
    """Write lines to files of 100,000 at most, `stem-00000.jsonl` and so on; their names."""
    names: list[str] = []
    with WorkProgress("writing", "documents", total) as progress:
        for number in count():
            first = list(islice(lines, 1))
            if not first and names:
                return names
            name = f"{stem}-{number:05d}.jsonl"
            output.write_lines(name, _counted(chain(first, islice(lines, _DOCUMENTS_A_FILE - 1)), progress))
            names.append(name)
    return names


def _counted(lines: Iterable[str], progress: WorkProgress) -> Iterator[str]:
    for line in lines:
        yield line
        progress.advance(1)
