"""`python -m splade_lit.encode`: the vectors of a corpus, on disk.

    python -m splade_lit.encode --model runs/quickstart/model --corpus docs.jsonl --output vectors
    python -m splade_lit.search --model runs/quickstart/model --vectors vectors "fit a curve through points"

The corpus may be of any size: vectors are written in shards as they are made, and a run that was interrupted goes on
where it stopped when it is started again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from splade_lit.command_line.arguments import LIMITS, CommandParser, positive_int
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.files import check_writable


def main(arguments: Sequence[str] | None = None) -> None:
    """Encode a corpus; the last line tells where the vectors are and how many.

    Raises:
        UserError: there is no such model or corpus, or the folder holds something else.
    """
    settings = _parser().parse_args(arguments)
    check_writable(folder=settings.output)
    from splade_lit.command_line.devices import pick_device
    from splade_lit.data.corpus import open_corpus
    from splade_lit.encoder.layout import document_side_fingerprint, find_saved
    from splade_lit.encoder.model import AsymmetricSparseEncoder
    from splade_lit.engines.shards import write_corpus_vectors

    device = pick_device(settings.device)
    corpus = open_corpus(settings.corpus, settings.text_column)
    encoder = AsymmetricSparseEncoder.load(settings.model, revision=settings.revision, device=device)
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
        )
    except KeyboardInterrupt:
        print("Stopped; the same command goes on after the last whole shard.", file=sys.stderr)
        raise
    print(f"vectors: {settings.output}  documents {header.num_documents:,}")


def _parser() -> CommandParser:
    parser = CommandParser("encode", "Write the vectors of a corpus of any size to a folder.")
    parser.add_shared("--model", "--revision")
    parser.add_shared("--corpus", required=True)
    parser.add_shared("--text-column")
    parser.add_argument("--output", type=Path, required=True, help="folder for the vectors")
    parser.add_argument("--values", choices=["float32", "float16"], default="float32", help="type of the weights")
    parser.add_argument(
        "--shard-documents", type=positive_int, default=10_000, help="documents of a shard (%(default)s)"
    )
    parser.add_shared(*LIMITS[1:])
    parser.add_shared("--device")
    return parser


if __name__ == "__main__":
    run_command(main)
