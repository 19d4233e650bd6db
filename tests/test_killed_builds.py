"""Builds that are killed: what was there stays, and what they left goes away with the next build."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_runs import environment
from test_engines import ENGINES, same_hits, vectors

from splade_lit.engines.open_index import open_index

_BUILD = """
import sys, time
from pathlib import Path
import numpy as np
from scipy.sparse import csr_array, random_array
from splade_lit.engines.index import Server
from splade_lit.engines.names import engine_class
folder, engine, url, rows, wait = sys.argv[1:]
made = csr_array(random_array((int(rows), 30), density=0.3, rng=np.random.default_rng(7), dtype=np.float32))
ids = [f"d{row}" for row in range(int(rows))]

def parts():
    for start in range(0, int(rows), 100):
        yield ids[start : start + 100], made[start : start + 100], ids[start : start + 100]
        time.sleep(float(wait))

def copy_query(folder):
    folder.mkdir()
    (folder / "file").write_text("query side")

print("begun", flush=True)
server = Server(url, "killed") if url else None
engine_class(engine).build(folder, parts, 30, copy_query, server=server).close()
"""


def kill_builds(engine: str, folder: Path, url: str, kills: int) -> None:
    """Builds of 600 documents over an index of 200, each killed a little later than the one before."""

    def command(rows: int, wait: float) -> list[str]:
        return [sys.executable, "-c", _BUILD, str(folder), engine, url, str(rows), str(wait)]

    subprocess.run(command(200, 0), env=environment(), check=True)
    expected = open_index(folder)
    queries = vectors(8, 3)
    before = expected.search(queries, 20)
    expected.close()
    wait = 0.02
    for kill in range(kills):
        process = subprocess.Popen(command(600, wait), env=environment(), stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep((kill + 0.5) / kills * 1.2)
        process.kill()
        process.wait()
        process.stdout.close()
        opened = open_index(folder)
        assert opened.stats().num_documents in (200, 600)
        if opened.stats().num_documents == 200:
            same_hits(opened.search(queries, 20), before)
        opened.close()
    subprocess.run(command(600, 0), env=environment(), check=True)
    made = open_index(folder)
    exact_folder = folder.with_name("whole")
    arguments = [sys.executable, "-c", _BUILD, str(exact_folder), "exact", "", "600", "0"]
    subprocess.run(arguments, env=environment(), check=True)
    whole = open_index(exact_folder)
    if engine != "seismic":
        same_hits(made.search(queries, 50), whole.search(queries, 50))
    assert made.stats().num_documents == 600
    made.close()
    left = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    assert len(left) == 3  # documents, query side, index.json


def test_a_killed_build_leaves_what_was_there(tmp_path):
    kill_builds("qdrant", tmp_path / "index", "", 1)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_thirty_kills_never_leave_half_an_index(engine, tmp_path, request):
    url = request.getfixturevalue("postgres_url") if engine == "pgvector" else ""
    kill_builds(engine, tmp_path / "index", url, 30)
    if engine == "pgvector":
        import psycopg

        with psycopg.connect(url) as connection:
            found = connection.execute("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'killed%'").fetchone()
            assert found == (1,)
