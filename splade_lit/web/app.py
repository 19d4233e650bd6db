"""The page and its JSON API."""

import asyncio
import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteError
from starlette.routing import Route

import splade_lit
from splade_lit.core.errors import UserError
from splade_lit.web import records
from splade_lit.web.answers import MAX_ID_CHARACTERS, MAX_QUERY_CHARACTERS, MAX_TOP, Answers
from splade_lit.web.guard import Guard

_SECONDS = 30.0  # for an answer, waiting for others among them
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_PAGES = {"index.html": "/", "api.html": "/api"}

T = TypeVar("T")

_System = Annotated[int, Query(ge=0, le=9, description="number of the index or of BM25, see `/api/site`")]
_Text = Annotated[str, Query(max_length=MAX_QUERY_CHARACTERS, description="what is searched for")]
_Cap = Annotated[int | None, Query(ge=1, le=65_535, description="keep so many of the largest weights of a document")]


def make_app(answers: Answers, hosts: Collection[str] = ()) -> Guard:
    """The server's application.

    Args:
        answers: what it answers with.
        hosts: names of this machine that requests may use, beside localhost and addresses of numbers.
    """
    app = FastAPI(
        title="splade_lit search",
        version=splade_lit.__version__,
        description="Search of learned sparse vectors, with the terms that make each score.",
        docs_url=None,  # its page loads scripts of others; /api is ours
        redoc_url=None,
        openapi_url="/openapi.json",
        responses={422: {"model": records.Problem}, 503: {"model": records.Problem}},
    )
    app.router.routes += _file_routes()
    # As many as there are cores are busy at a time, and others wait in turn: more would only hold one another up.
    # An answer that is given up keeps its place until its thread ends.
    threads = ThreadPoolExecutor((os.cpu_count() or 1) + 2)

    async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
        try:
            answer = asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
            return await asyncio.wait_for(answer, _SECONDS)
        except TimeoutError:
            raise HTTPException(503, f"The answer takes longer than {_SECONDS:.0f} s; try again.") from None

    def check(system: int) -> None:
        if system >= len(answers.systems):
            raise HTTPException(404, f"There is no system {system}; there are {len(answers.systems)}, from 0.")

    @app.get("/api/site", summary="What can be searched")
    async def site() -> records.Site:
        return await in_thread(lambda: answers.site)

    @app.get("/api/search", summary="The hits of a query")
    async def search(
        query: _Text,
        system: _System = 0,
        top: Annotated[int, Query(ge=1, le=MAX_TOP, description="hits at most")] = 10,
        cap: _Cap = None,
    ) -> records.Answer:
        check(system)
        return await in_thread(answers.search, query, system, top, cap)

    @app.get(
        "/api/document", summary="A document in full, with its vector", responses={404: {"model": records.Problem}}
    )
    async def document(
        id: Annotated[str, Query(max_length=MAX_ID_CHARACTERS, description="of the document")],
        query: _Text = "",
        system: _System = 0,
        cap: _Cap = None,
    ) -> records.Document:
        check(system)
        found = await in_thread(answers.document, id, query, system, cap)
        if found is None:
            raise HTTPException(404, "There is no document of this id.")
        return found

    @app.get("/api/pruning", summary="What is left when documents keep their largest weights only")
    async def pruning(system: _System = 0) -> records.PruningCurve:
        check(system)
        return await in_thread(answers.pruning, system)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Any) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}."}, 422)

    @app.exception_handler(StarletteError)
    async def refused(request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"detail": str(error.detail)}, error.status_code)

    @app.exception_handler(UserError)
    async def not_possible(request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"detail": "The server has failed; its log tells why."}, 500)

    return Guard(app, hosts)


def _file_routes() -> list[Route]:
    """The files of the page, read once."""
    return [
        _file_route(_PAGES.get(file.name, f"/{file.name}"), file.read_bytes(), _TYPES[Path(file.name).suffix])
        for file in files("splade_lit.web").joinpath("page").iterdir()
    ]


def _file_route(path: str, content: bytes, media_type: str) -> Route:
    async def file(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return Route(path, file)
