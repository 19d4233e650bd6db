"""`python -m splade_lit.init`: from a file of pairs, or a corpus alone, to a YAML file that trains on it.

    python -m splade_lit.init my_experiment --pairs pairs.jsonl --corpus docs.jsonl
    python -m splade_lit.init my_experiment --corpus docs.jsonl
    python -m splade_lit.fit --config experiments/my_experiment.yaml

Checks the data and says what is in them, keeps queries out of training and makes a retrieval task of them over the
corpus, chooses settings from lengths, size and machine, and tells how long the run will take, by training a few steps.

Writes experiments/my_experiment.yaml and beside it the folder my_experiment-heldout, the task in BEIR's layout. Without
pairs, or with fewer than 2,000, some are made of titles, headings and sentences of the documents, for teachers to
score, and written to my_experiment-pairs.jsonl with those that are given.
"""

from collections.abc import Sequence
from pathlib import Path

from splade_lit.command_line.arguments import CommandParser, positive_int
from splade_lit.command_line.exit_codes import quiet_libraries, run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Inspect the data, write the YAML file and the task, and print what was seen and how to go on.

    Raises:
        UserError: the data cannot be used, the file exists already, or no base model can be had.
    """
    options = _parser().parse_args(arguments)
    from splade_lit.own_data.wizard import write_experiment

    quiet_libraries()
    write_experiment(options)


def _parser() -> CommandParser:
    parser = CommandParser("init", "Write a YAML file that trains on pairs or documents of your own.")
    parser.add_argument("name", help="name of the experiment, for experiments/NAME.yaml, or the path of a YAML file")
    parser.add_argument(
        "--pairs",
        help="file (jsonl, csv, tsv, parquet; gzipped or not), data set folder or Hub id (default: made of the corpus)",
    )
    parser.add_argument(
        "--pairs-config",
        help="which configuration of the data set, if there are several; triples for MS MARCO's files of three texts a "
        "line",
    )
    parser.add_argument("--query-column", help="its column of queries (default: query, question and the like)")
    parser.add_argument("--document-column", help="its column of documents (default: answer, document and the like)")
    parser.add_argument("--positive-columns", nargs="+", default=[], help="its columns of further answers, if any")
    parser.add_argument("--negative-columns", nargs="+", default=[], help="its columns of hard negatives, if any")
    parser.add_argument(
        "--corpus", help="what is searched: file, data set or BEIR folder (default: the documents of the pairs)"
    )
    parser.add_argument("--text-column", help="its column of texts (default: text, contents and the like)")
    parser.add_argument(
        "--title-column", help="its column of titles, for pairs that are made (default: title, if there is one)"
    )
    parser.add_argument("--queries", help="test queries with ids; without them, queries of pairs are held out")
    parser.add_argument(
        "--qrels", type=Path, help="which documents answer them: query-id, corpus-id, score, as in BEIR"
    )
    parser.add_argument("--held-out", type=positive_int, help="queries to hold out (default: a tenth, 500 at most)")
    parser.add_argument(
        "--max-corpus-documents",
        type=positive_int,
        help="documents of the held-out task, all answers among them (default: 2500 on a CPU, 100000 on a GPU)",
    )
    parser.add_argument(
        "--base-model",
        help="Hub id, folder or package:NAME/FOLDER (default: all-MiniLM-L6-v2 on a CPU, DistilBERT on a GPU)",
    )
    parser.add_argument(
        "--target-active-dims",
        type=positive_int,
        default=150,
        help="terms that an average document shall have, which the size of the index goes with (default: 150)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file and the task where they exist")
    parser.add_argument("--no-timing", action="store_true", help="train no steps to tell how long the run will take")
    return parser


if __name__ == "__main__":
    run_command(main)
