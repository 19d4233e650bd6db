"""`python -m splade_lit.encode`: the vectors of a corpus, on disk.

    python -m splade_lit.encode --model runs/quickstart/model --corpus docs.jsonl --output vectors
    python -m splade_lit.search --model runs/quickstart/model --vectors vectors "fit a curve through points"

The corpus may be of any size: vectors are written in shards as they are made, and a run that was interrupted goes on
where it stopped when it is started again. Several processes share the work with `--workers`, the machines of a Ray
cluster with `--engine ray`; the shards are the same.

    python -m splade_lit.encode --model MODEL --corpus 'docs-*.jsonl.gz' --output s3://bucket/vectors --workers 4
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splade_lit.command_line.arguments import LIMITS, CommandParser, positive_int
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_writable

if TYPE_CHECKING:
    import argparse

    from splade_lit.encoder.pruning import Pruning
    from splade_lit.engines.shards import MakeShards

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Encode a corpus; the last line tells where the vectors are and how many.

    Raises:
        UserError: there is no such model or corpus, or the folder holds something else.
    """
    settings = _parser().parse_args(arguments)
    if "://" not in settings.output:
        check_writable(folder=Path(settings.output))
    if settings.address and settings.engine != "ray":
        raise UserError("--address is that of a Ray cluster; give --engine ray too.")
    from splade_lit.command_line.devices import pick_device
    from splade_lit.data.corpus import open_corpora
    from splade_lit.encoder.layout import document_side_fingerprint, find_saved
    from splade_lit.encoder.model import AsymmetricSparseEncoder
    from splade_lit.engines.shards import write_corpus_vectors

    on_ray = settings.engine == "ray"
    device = "" if on_ray else str(pick_device(settings.device))
    corpus = open_corpora(settings.corpus, settings.text_column, settings.stream)
    several = on_ray or settings.workers
    _tell_of_idle_workers(settings.workers, corpus.num_rows, settings.shard_documents)
    encoder = AsymmetricSparseEncoder.load(
        settings.model, revision=settings.revision, device="cpu" if several else device
    )
    encoder.pruning = encoder.pruning.changed(vars(settings))
    try:
        header = write_corpus_vectors(
            encoder,
            corpus,
            settings.output,
            document_side_fingerprint(find_saved(settings.model, settings.revision)),
            values=settings.values,
            shard_documents=settings.shard_documents,
            show_progress_bar=True,
            make=_workers(settings, encoder.pruning, settings.device or device) if several else None,
        )
    except KeyboardInterrupt:
        print("Stopped; the same command goes on after the last whole shard.", file=sys.stderr)
        raise
    print(f"vectors: {settings.output}  documents {header.num_documents:,}")


def _tell_of_idle_workers(workers: int | None, documents: int | None, shard_documents: int) -> None:
    """Warn where a corpus, whose length is known, has fewer shards than there are workers, which take one at a time."""
    if workers and documents and workers > (shards := -(-documents // shard_documents)):
        logger.warning(
            "%s: --workers %d, of which %d have nothing to do; for a shard each give --shard-documents %d.",
            f"{documents:,} documents are {shards} shard{'s' * (shards > 1)}",
            workers,
            workers - shards,
            -(-documents // workers),
        )


def _workers(settings: "argparse.Namespace", pruning: "Pruning", device: str) -> "MakeShards":
    from splade_lit.engines.workers import LocalWorkers, RayWorkers, Work

    # Workers may run in another folder.
    model = str(Path(settings.model).resolve()) if Path(settings.model).exists() else settings.model
    output = settings.output if "://" in settings.output else str(Path(settings.output).resolve())
    work = Work(model, settings.revision, pruning, device, settings.values, output)
    if settings.engine == "ray":
        return RayWorkers(work, settings.workers, settings.address)
    return LocalWorkers(work, settings.workers)


def _parser() -> CommandParser:
    parser = CommandParser("encode", "Write the vectors of a corpus of any size to a folder.")
    parser.add_shared("--model", "--revision")
    several = "files of a corpus by name or pattern, such as 'docs-*.jsonl.gz', or one corpus: data set, folder of a "
    several += "test collection, irds:ID, or task such as docstrings"
    parser.add_shared("--corpus", required=True, nargs="+", metavar="CORPUS", help=several)
    parser.add_shared("--text-column")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="read a file or a data set as it comes, without a copy on disk, as several files always are; how many "
        "documents there are is known at the end only",
    )
    parser.add_argument("--output", required=True, help="folder for the vectors, or an address such as s3://...")
    parser.add_argument("--values", choices=["float32", "float16"], default="float32", help="type of the weights")
    parser.add_argument(
        "--shard-documents", type=positive_int, default=10_000, help="documents of a shard (%(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        help="encode in so many processes, which share cores or GPUs (default: this one; with Ray one a core or GPU)",
    )
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="where workers run (%(default)s)")
    parser.add_argument("--address", help="address of the Ray cluster (default: a new one on this machine)")
    parser.add_shared(*LIMITS[1:])
    parser.add_shared("--device")
    return parser


if __name__ == "__main__":
    run_command(main)
