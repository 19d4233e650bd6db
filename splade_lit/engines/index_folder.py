"""The folder of an index: what it says of itself, its query side, and builds that are there whole or not at all.

index.json      engine, dims, model, where the documents are; replaced last
0000/           the documents, where the engine keeps them in files; `server.json` where it keeps them on a server
0000.query/     the query side of the model, if the index was made with one

Each build has the next number, in the folder and in the name of what it makes on a server. What no index.json names is
left from a build that was stopped, and goes away with the next one that reaches its server.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from splade_lit.core.errors import UserError
from splade_lit.core.files import hold_folder, replace_text
from splade_lit.core.text import parse_json
from splade_lit.engines.index import INDEX_JSON, NameTakenError, Server, StoredServer, read_index_json

FORMAT = 1
OURS = re.compile(r"(\d{4,})(\.query|-\d+\.deleted)?")
"""Names of what builds and changes leave in a folder."""
_SERVER_JSON = "server.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Header:
    """What index.json says.

    Attributes:
        engine: its name.
        format: of the folder.
        vocab_size: dims of a vector.
        name: of this build: the folder with its documents.
        query: the folder with the query side of the model.
        model: fingerprint of the model that made the vectors, see `document_side_fingerprint`.
        server: where the documents are, with the whole name; None if they are in the folder.
    """

    engine: str
    format: int
    vocab_size: int
    name: str
    query: str | None = None
    model: str | None = None
    server: Server | None = None

    @classmethod
    def read(cls, folder: Path, engine: str) -> "Header":
        """What the file in a folder says; a UserError if there is none, or it is damaged or of another version."""
        content = read_index_json(folder)
        try:
            server = content.pop("server", None)
            header = cls(**content, server=StoredServer(**server) if server else None)
            names = [header.name, *([header.query] if header.query else [])]
            if any(not OURS.fullmatch(name) for name in names) or header.vocab_size < 1:
                raise ValueError("it names files elsewhere")
            if header.server and not header.server.name.endswith(f"_{header.name}"):
                raise ValueError("what it names on its server is of no build")
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{folder} holds a damaged index ({error}); build it again.") from error
        if (header.engine, header.format) != (engine, FORMAT):
            raise UserError(f"{folder}: the index is of another version; build it again.")
        return header


def build_whole(
    folder: Path,
    engine: str,
    vocab_size: int,
    write: Callable[[Path, Server | None], None],
    drop: Callable[[Server], None],
    copy_query: Callable[[Path], None] | None = None,
    model: str | None = None,
    server: Server | None = None,
    check_free: Callable[[Server], None] = lambda there: None,
) -> None:
    """Build an index in a folder; what is in it, or left from builds that were stopped, then gives way.

    Args:
        folder: a new or empty folder, or one with an index of this engine.
        engine: its name.
        vocab_size: dims of a vector.
        write: writes the documents into the folder that it is given, which is new, or to the server.
        drop: removes what an earlier build has written to a server, if it is there.
        copy_query: writes the query side of the model to a folder.
        model: fingerprint of the model.
        server: where the documents go.
        check_free: raises a NameTakenError if the server has something of a name already.

    Raises:
        UserError: another process writes there, the folder holds something else, or it cannot be written.
        NameTakenError: the server has something of this name already.
    """
    check_folder(folder, engine, server)
    held = hold_folder(folder)
    try:
        kept, names = _kept(folder, engine)
        names |= {server.name} if server else set()
        _remove_all_but(folder, kept, drop, names)
        name = next_name(folder)
        query = f"{name}.query" if copy_query else None
        place = folder / name
        place.mkdir()
        there = Server(server.url, f"{server.name}_{name}") if server else None
        try:
            if there:
                check_free(there)  # before the name is written down: the next build drops what it finds of it
                replace_text(place / _SERVER_JSON, json.dumps(asdict(there)))  # so that a stopped build is found
            write(place, there)
            if copy_query:
                copy_query(folder / f"{name}.query")
        except NameTakenError:
            shutil.rmtree(place)
            raise
        except UserError:
            _remove_all_but(folder, kept, drop, names)
            raise
        write_header(folder, Header(engine, FORMAT, vocab_size, name, query, model, there))
        _remove_all_but(folder, {name, query}, drop, names)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); free space and start again.") from error
    finally:
        held.release()


def check_folder(folder: Path, engine: str, server: Server | None = None) -> None:
    """Raise a UserError if a folder holds something else than an index of this engine, or a part of one.

    So it does if a name on a server leaves no room for the number of a build. A damaged index gives way like a whole
    one if all else there has names of ours.
    """
    if server:
        server.check_room()
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give the name of a folder.")
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    ours = all(name == INDEX_JSON or OURS.fullmatch(name) for name in names)
    content: dict[str, Any] = {"engine": engine}
    if ours and INDEX_JSON in names:
        try:
            content = read_index_json(folder)
        except UserError:
            ours = len(names) > 1  # a damaged file alone could be anybody's
    there = content.get("engine")
    if ours and there != engine and isinstance(there, str) and "format" in content:
        raise UserError(f"{folder} holds an index of the engine {there}; give a new folder for one of {engine}.")
    if not ours or there != engine:
        raise UserError(f"{folder} is in use and holds no index; give a new or an empty folder.")


def next_name(folder: Path) -> str:
    """A number that nothing in the folder has, as a name."""
    taken = [int(match[1]) for path in folder.iterdir() if (match := OURS.fullmatch(path.name))]
    return f"{max(taken, default=-1) + 1:04d}"


def write_header(folder: Path, header: Any) -> None:
    """Make a change: from here on, an index is what this dataclass says."""
    replace_text(folder / INDEX_JSON, json.dumps(asdict(header), indent=2) + "\n")


def remove_files(folder: Path, keep: set[str | None]) -> None:
    """Remove what builds and changes have left and no header names."""
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) and path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _kept(folder: Path, engine: str) -> tuple[set[str | None], set[str]]:
    """What must stay until a build is whole, and the name on a server that index.json says, without its number.

    To stay has what index.json names, or everything if it cannot be read.
    """
    if not (folder / INDEX_JSON).exists():
        return set(), set()
    try:
        header = Header.read(folder, engine)
    except UserError:
        return {path.name for path in folder.iterdir()}, set()
    names = {header.server.name.removesuffix(f"_{header.name}")} if header.server else set()
    return {header.name, header.query}, names


def _remove_all_but(folder: Path, keep: set[str | None], drop: Callable[[Server], None], names: set[str]) -> None:
    """Remove other builds, with what they have made on a server under one of these names and their number."""
    for path in sorted(folder.iterdir()):
        if not OURS.fullmatch(path.name) or path.name in keep or not (path / _SERVER_JSON).is_file():
            continue
        try:
            server = StoredServer(**parse_json((path / _SERVER_JSON).read_text(encoding="utf-8")))
            if server.name not in {f"{name}_{path.name}" for name in names}:
                ways = f"drop it there by hand, if it is yours, then remove {path}"
                logger.warning("%s: %s is another name than this index has on its server; %s.", path, server.name, ways)
                keep = {*keep, path.name}
                continue
            drop(server)
        except (OSError, ValueError, TypeError, UserError) as error:
            logger.warning("%s: what a build left on its server stays there until the next one: %s", path, error)
            keep = {*keep, path.name}
    remove_files(folder, keep)
