"""`python -m splade_lit.export`: a saved model, or a corpus encoded with it, for other programs.

    python -m splade_lit.export onnx runs/my_run/model
    python -m splade_lit.export onnx runs/my_run/model --int8 --tasks docstrings --output exported
    python -m splade_lit.export bundle runs/my_run/model --output bundle
    python -m splade_lit.export ciff --model runs/my_run/model --corpus docs.jsonl --output ciff
    python -m splade_lit.export opensearch --index docs.index --output opensearch

`onnx` writes the document encoder as ONNX (pooling inside the graph), the tokenizer and the query table, into the
folder `onnx` of the model. A graph whose vectors differ from PyTorch's is refused. `docs/onnx.md` shows how to read the
files. `bundle` writes a folder to deploy, with clients in Python and JavaScript and the mappings of engines. The other
formats hold documents and queries for an engine: `docs/exports.md`.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from splade_lit.command_line.arguments import LIMITS, CommandParser, at_least, number_from, positive_int
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_writable

if TYPE_CHECKING:
    import argparse

logger = logging.getLogger(__name__)


class Format(NamedTuple):
    """What can be written: a sentence on it, its options, and the function that writes it."""

    help: str
    add_options: Callable[[CommandParser], None]
    write: "Callable[[argparse.Namespace], None]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Export in the format that is named first, and print what was written.

    Raises:
        UserError: there is no such model, corpus or task, packages are missing, or the output cannot be written.
    """
    settings = _parser().parse_args(arguments)
    FORMATS[settings.format].write(settings)


def _onnx_options(parser: CommandParser) -> None:
    parser.add_argument("model", metavar="MODEL_DIR", help="folder of a saved model, or its Hub id")
    parser.add_shared("--revision")
    parser.add_argument("--output", type=Path, help="folder to write to (default: `onnx` in the model's folder)")
    parser.add_argument(
        "--values",
        choices=["dense", "sparse"],
        default="dense",
        help="outputs of the graph: `embeddings` [documents, vocab], or `indices` and `values` of the active dims "
        "(default: dense)",
    )
    parser.add_argument(
        "--int8", action="store_true", help="write the graph with 8-bit weights too, about a quarter of the size"
    )
    parser.add_shared(*LIMITS)
    parser.add_argument("--tasks", nargs="+", default=[], help="tasks to compare nDCG@10 on, named as in evaluate")
    parser.add_shared("--nanobeir-source", "--nanobeir-revision", "--max-corpus-documents")


def _onnx(settings: "argparse.Namespace") -> None:
    from splade_lit.data.tasks import load_tasks
    from splade_lit.encoder.model import AsymmetricSparseEncoder
    from splade_lit.engines.onnx import require_packages
    from splade_lit.evaluation.task_evaluation import sample_corpus
    from splade_lit.exports.onnx import compare_with_graphs, export_onnx

    if settings.output is None and not Path(settings.model).is_dir():
        raise UserError(f"{settings.model} is not a folder to write into; say where with --output.")
    folder = settings.output or Path(settings.model) / "onnx"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give the name of a folder.")
    check_writable(folder=folder)
    require_packages("onnx", "onnxscript", "onnxruntime")
    tasks = load_tasks(settings.tasks, settings.nanobeir_source, settings.nanobeir_revision)
    if settings.max_corpus_documents:
        tasks = [sample_corpus(task, settings.max_corpus_documents) for task in tasks]
    encoder = AsymmetricSparseEncoder.load(settings.model, revision=settings.revision)
    encoder.pruning = encoder.pruning.changed(vars(settings))
    export_onnx(encoder, folder, values=settings.values, int8=settings.int8)
    for path in sorted(folder.glob("*.onnx")):
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    if settings.int8 and not tasks:
        logger.warning("What 8-bit weights cost in nDCG@10 was not measured; give --tasks to know.")
    for task in tasks:
        print(compare_with_graphs(encoder, folder, task, settings.int8))


def _bundle_options(parser: CommandParser) -> None:
    parser.add_argument("model", metavar="MODEL_DIR", help="folder of a saved model, or its Hub id")
    parser.add_shared("--revision")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to, whole or not at all")
    parser.add_argument("--int8", action="store_true", help="the graph with 8-bit weights, about a quarter of the size")
    parser.add_shared(*LIMITS)


def _bundle(settings: "argparse.Namespace") -> None:
    from splade_lit.encoder.layout import find_saved
    from splade_lit.encoder.model import AsymmetricSparseEncoder
    from splade_lit.engines.onnx import require_packages
    from splade_lit.exports.bundle import check_bundle_folder, write_bundle

    check_writable(folder=settings.output)
    check_bundle_folder(settings.output)
    require_packages("onnx", "onnxscript", "onnxruntime")
    layout = find_saved(settings.model, settings.revision)
    encoder = AsymmetricSparseEncoder.load(settings.model, revision=settings.revision)
    encoder.pruning = encoder.pruning.changed(vars(settings))
    bundle = write_bundle(encoder, settings.output, layout, int8=settings.int8)
    size = sum(file.bytes for file in bundle.files.values()) / 1e6
    print(f"bundle: {settings.output}  files {len(bundle.files) + 1}  {size:.1f} MB")
    if settings.int8:
        logger.warning("What 8-bit weights cost in nDCG@10 was not measured; export onnx --int8 --tasks does that.")


def _corpus_options(parser: CommandParser, names: str | None = "tokens", tasks: bool = True) -> None:
    """What all formats of a corpus take: `names` is how dims are called, `tasks` whether something can be lost."""
    parser.add_shared("--model", required=False)
    parser.add_shared("--revision", "--corpus", "--text-column")
    parser.add_argument("--vectors", help="folder or address that python -m splade_lit.encode has written to")
    parser.add_argument("--index", type=Path, help="or an exact index that python -m splade_lit.index has written")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    if names is not None:
        parser.add_argument(
            "--names", choices=["tokens", "dims"], default=names, help="how dims are called (default: %(default)s)"
        )
    parser.add_argument(
        "--queries-file", type=Path, help="queries to write too: jsonl with _id and text, or id, tab, text"
    )
    if tasks:
        parser.add_argument("--tasks", nargs="+", default=[], help="tasks to measure the loss of nDCG@10 on")
        parser.add_shared("--nanobeir-source", "--nanobeir-revision", "--max-corpus-documents")
    parser.add_shared(*LIMITS[1:], "--device")


def _scale_option(parser: CommandParser, name: str, default: float | None, help: str) -> None:
    parser.add_argument(name, type=number_from(1e-6), default=default, metavar="S", help=help)


def _ciff_options(parser: CommandParser) -> None:
    _corpus_options(parser)
    parser.add_argument(
        "--bits",
        type=at_least(1),
        default=8,
        help="the largest weight gets the largest impact of so many (%(default)s)",
    )
    _scale_option(parser, "--scale", None, "impacts are weights times S, rounded (default: as --bits says)")
    _scale_option(parser, "--query-scale", 100.0, "of queries: tokens are repeated weight times S times (%(default)g)")


def _anserini_options(parser: CommandParser) -> None:
    _corpus_options(parser)
    _scale_option(parser, "--scale", 100.0, "impacts are weights times S, rounded (%(default)g)")
    _scale_option(parser, "--query-scale", 100.0, "of queries: tokens are repeated weight times S times (%(default)g)")


def _vespa_options(parser: CommandParser) -> None:
    _corpus_options(parser, names="dims", tasks=False)
    _scale_option(
        parser, "--scale", 100.0, "whole numbers that documents are found by are weights times S (%(default)g)"
    )
    _query_option(parser)


def _vectors_options(parser: CommandParser) -> None:
    _corpus_options(parser, tasks=False)
    parser.add_argument(
        "--form",
        choices=["terms", "indices"],
        default="terms",
        help="`vector`, a name to a weight, or `indices` and `values` (default: terms)",
    )


def _opensearch_options(parser: CommandParser) -> None:
    _cluster_options(parser)
    parser.add_argument(
        "--field",
        choices=["rank_features", "sparse_vector"],
        default="rank_features",
        help="type of the field: exact, or SEISMIC from 3.3 on (default: rank_features)",
    )
    parser.add_argument(
        "--doc-only",
        action="store_true",
        help="write a tokenizer model, with which the cluster looks queries up itself",
    )


def _elasticsearch_options(parser: CommandParser) -> None:
    _cluster_options(parser)
    parser.add_argument(
        "--field",
        choices=["sparse_vector", "rank_features"],
        default="sparse_vector",
        help="type of the field; sparse_vector needs 8.15 (default: sparse_vector)",
    )


def _cluster_options(parser: CommandParser) -> None:
    _corpus_options(parser)
    parser.add_argument(
        "--bulk-megabytes",
        type=positive_int,
        default=20,
        metavar="MB",
        help="size of a file of documents (%(default)s)",
    )
    _query_option(parser)


def _query_option(parser: CommandParser) -> None:
    parser.add_argument(
        "--query", default="an example", help="text of the query in query.json (default: '%(default)s')"
    )


def _of_corpus(function: str, *arguments: str) -> "Callable[[argparse.Namespace], None]":
    """The function of this name, which is imported once it is called."""

    def write(settings: "argparse.Namespace") -> None:
        from splade_lit.exports import of_corpus

        getattr(of_corpus, function)(*arguments, settings)

    return write


FORMATS = {
    "onnx": Format("the document encoder as ONNX, with tokenizer and query table", _onnx_options, _onnx),
    "bundle": Format(
        "a folder to deploy: ONNX, clients without PyTorch, mappings of engines", _bundle_options, _bundle
    ),
    "ciff": Format("an inverted index in the Common Index File Format", _ciff_options, _of_corpus("export_ciff")),
    "anserini": Format(
        "a JsonVectorCollection and topics for Anserini and Pyserini",
        _anserini_options,
        _of_corpus("export_anserini"),
    ),
    "opensearch": Format(
        "index body, documents and queries for OpenSearch",
        _opensearch_options,
        _of_corpus("export_cluster", "opensearch"),
    ),
    "elasticsearch": Format(
        "index body, documents and queries for Elasticsearch",
        _elasticsearch_options,
        _of_corpus("export_cluster", "elasticsearch"),
    ),
    "vespa": Format("a schema, a feed and a query for Vespa", _vespa_options, _of_corpus("export_vespa")),
    "vectors": Format("the vectors as plain lines of JSON", _vectors_options, _of_corpus("export_vectors")),
}


def _parser() -> CommandParser:
    parser = CommandParser("export", "A saved model, or a corpus encoded with it, for other programs.")
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT", help="what to write:")
    for name, (sentence, add_options, _) in FORMATS.items():
        add_options(
            formats.add_parser(
                name, command=f"export {name}", help=sentence, description=f"{sentence[0].upper()}{sentence[1:]}."
            )
        )
    return parser


if __name__ == "__main__":
    run_command(main)
