"""From a command line to a server that answers until it is told to stop."""

import logging
import os
import socket
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from splade_lit.core.errors import UserError
from splade_lit.web.answers import Answers
from splade_lit.web.app import make_app
from splade_lit.web.systems import IndexSystem, System

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """What is served.

    Attributes:
        indexes: folders of indexes.
        with_bm25: whether BM25 over the texts of the first one is beside it.
        task: name or folder of a retrieval task of their corpus.
        model: folder or Hub id of the model that made the first index, to tell which token raised a term.
    """

    indexes: Sequence[str]
    with_bm25: bool = False
    task: str | None = None
    model: str | None = None


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free.

    Raises:
        UserError: the port is in use, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        # The text of `create_server` names the address once more; unknown names have numbers below 0.
        what = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error.strerror or error)
        raise UserError(
            f"{host}, port {port}: {what.lower()}; give another --port, or --host of this machine."
        ) from None


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("localhost")
    (True, True, False, True)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_answers(served: Served) -> Answers:
    """Open what is served.

    Raises:
        UserError: something of it is missing, damaged, or does not go with the rest.
    """
    encoder = None
    if served.model is not None:
        from splade_lit.encoder.model import AsymmetricSparseEncoder

        encoder = AsymmetricSparseEncoder.load(served.model)
    names = _names(served.indexes)
    opened = [
        IndexSystem(one, name, None if n else encoder)
        for n, (one, name) in enumerate(zip(served.indexes, names, strict=True))
    ]
    if served.model is not None and opened[0].model is not None:
        from splade_lit.encoder.layout import document_side_fingerprint, find_saved

        if document_side_fingerprint(find_saved(served.model)) != opened[0].model:
            raise UserError(f"{served.indexes[0]} was not made with {served.model}; give the model that made it.")
    systems: list[System] = [*opened]
    if served.with_bm25:
        from splade_lit.web.bm25 import Bm25System  # here, as what it loads takes longer than to open an index

        systems.append(Bm25System(*opened[0].texts(), served.indexes[0]))
    judged = None
    if served.task is not None:
        from splade_lit.data.tasks import load_task
        from splade_lit.web.judged import JudgedQueries

        tasks = load_task(served.task)
        if len(tasks) > 1:
            raise UserError(f"{served.task} holds {len(tasks)} tasks; give one, of the corpus that is indexed.")
        judged = JudgedQueries(tasks[0], systems)
        judged.start()
    return Answers(systems, judged)


def serve(served: Served, host: str, port: int, hosts: Sequence[str] = ()) -> None:
    """Serve the page until Ctrl-C.

    Args:
        served: what to search.
        host: address to listen at.
        port: number of the port.
        hosts: names that this machine has, for requests that come by name.

    Raises:
        UserError: the port is in use, or something of what is served is missing.
    """
    with closing(bound(host, port)) as listening:  # before what takes longer
        answers = open_answers(served)
        server = make_server(answers, (*hosts, *_own_names(host)))
        if not is_loopback(host):
            logger.warning("%s is reached from other machines: whoever reaches it can read all documents.", host)
        shown = f"[{host}]" if ":" in host else host
        for system in answers.systems:
            print(f"{system.name}: {system.num_documents:,} documents")
        print(f"http://{shown}:{listening.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
        server.run(sockets=[listening])


def make_server(answers: Answers, hosts: Sequence[str] = ()) -> uvicorn.Server:
    """A server of these answers, with limits on what it takes; see `make_app`."""
    config = uvicorn.Config(
        make_app(answers, hosts),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=1000,
        h11_max_incomplete_event_size=65_536,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def _own_names(host: str) -> tuple[str, ...]:
    """The names of this machine, if it is reached by them."""
    return (host,) if is_loopback(host) else (host, socket.gethostname(), socket.getfqdn())


def _names(folders: Sequence[str]) -> list[str]:
    """The last parts of paths, whole paths where these are alike."""
    names = [Path(folder).name or folder for folder in folders]
    return names if len(set(names)) == len(names) else list(folders)
