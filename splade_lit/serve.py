"""`python -m splade_lit.serve`: a page to search an index with, and to see why a document is found.

    python -m splade_lit.serve --index docs.index
    python -m splade_lit.serve --index docs.index --with bm25 --task my_collection --model runs/my_run/model
    python -m splade_lit.serve --index before.index --index after.index --port 8001

Beside the page there is a JSON API, at /api. Nothing leaves this machine, and nothing is loaded from elsewhere.
"""

from collections.abc import Sequence

from splade_lit.command_line.arguments import CommandParser, at_least
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError

_MOST_INDEXES = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: there is no such index, task or model, a package is missing, or the port is in use.
    """
    settings = _parser().parse_args(arguments)
    if len(settings.index) + (settings.beside is not None) > _MOST_INDEXES:
        raise UserError("Two systems fit beside each other; give two --index, or one and --with bm25.")
    if settings.port > 65_535:
        raise UserError(f"--port is {settings.port}; it must be 65535 at most.")
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        hint = "pip install -c constraints.txt -e '.[serve]'"
        raise UserError(f"serve needs {error.name}, which is not installed; run `{hint}`.") from error
    from splade_lit.web.server import Served, serve

    served = Served(settings.index, settings.beside is not None, settings.task, settings.model)
    serve(served, settings.host, settings.port, settings.allow_host)


def _parser() -> CommandParser:
    parser = CommandParser(
        "serve", "A web page to search an index with; each hit comes with the terms that made its score."
    )
    parser.add_argument(
        "--index", action="append", required=True, help="index to search; give a second one to see it beside the first"
    )
    parser.add_argument("--with", dest="beside", choices=["bm25"], help="BM25 over the same texts, beside the index")
    parser.add_argument("--task", help="retrieval task of the corpus, by name or folder, for nDCG@10 and its queries")
    parser.add_shared(
        "--model",
        required=False,
        help="the model that made the first index, to tell which token of a document raised a term (loads PyTorch)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine alone)")
    parser.add_argument("--port", type=at_least(0), default=8000, help="port to listen at; 0: a free one (%(default)s)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that this machine is reached by, where it is not its own",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
