"""`python -m splade_lit.evaluate`: retrieval and sparsity figures of a saved model.

    python -m splade_lit.evaluate --model runs/quickstart/model --tasks docstrings --bm25 --output metrics.json
    python -m splade_lit.evaluate --model runs/my_run/model --tasks msmarco nfcorpus nq ./beir/scifact
    python -m splade_lit.evaluate --model runs/my_run/model --tasks nq --measures nDCG@10 RR@10 R@1000 AP
    python -m splade_lit.evaluate --model runs/my_run/model --tasks nq --with bm25 --fusion rrf
    python -m splade_lit.evaluate --model runs/my_run/model --tasks nq --rerank bm25

Prints a table; `--output` keeps every figure under the names that sentence-transformers' evaluators use. A folder with
metrics.json and per_query.jsonl (`--output folder/metrics.json --per-query folder/per_query.jsonl`) is one that
`python -m splade_lit.compare` takes like that of a run.
"""

from argparse import ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splade_lit.command_line.arguments import LIMITS, CommandParser, positive_int
from splade_lit.command_line.devices import pick_device
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_writable, replace_text
from splade_lit.core.text import check_trec_ids, read_trec_run, trec_run_text
from splade_lit.runs.stages import print_stages, write_stages

if TYPE_CHECKING:
    from splade_lit.data.tasks import RetrievalTask
    from splade_lit.encoder.model import AsymmetricSparseEncoder
    from splade_lit.evaluation.metrics import Run
    from splade_lit.evaluation.reranking import Reranked
    from splade_lit.evaluation.results import TaskResult

_RERANK_TOP = 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate a saved model and print a table.

    Raises:
        UserError: there is no such model or task, or the output cannot be written.
    """
    settings = _parser().parse_args(arguments)
    check_writable(settings.output, settings.runs)
    check_writable(settings.per_query)
    from splade_lit.data.tasks import load_tasks
    from splade_lit.encoder.model import AsymmetricSparseEncoder
    from splade_lit.evaluation.bm25 import best_bm25
    from splade_lit.evaluation.measures import measure_names
    from splade_lit.evaluation.per_query import figures_of_results, write_per_query
    from splade_lit.evaluation.reranking import reranking_stages
    from splade_lit.evaluation.results import flat_metrics
    from splade_lit.evaluation.task_evaluation import evaluate_task, sample_corpus, with_measures, without_own_documents

    _check_fusion(settings)
    _check_reranking(settings)
    device, measures = pick_device(settings.device), measure_names(settings.measures)
    tasks = load_tasks(settings.tasks, settings.nanobeir_source, settings.nanobeir_revision)
    tasks = with_measures(without_own_documents(tasks, settings.leave_out_queries), measures)
    if settings.max_corpus_documents:
        tasks = [sample_corpus(task, settings.max_corpus_documents) for task in tasks]
    runs = _read_runs(Path(settings.rerank), tasks) if settings.rerank not in (None, "bm25") else None
    if settings.runs:
        check_trec_ids(id for task in tasks for id in (*task.queries, *task.corpus))
    encoder = AsymmetricSparseEncoder.load(settings.model, revision=settings.revision, device=device)
    encoder.pruning = encoder.pruning.changed(vars(settings))
    stages, per_query = {}, {}
    if settings.bm25:
        stages["bm25"], of_bm25 = best_bm25(tasks, encoder.tokenizer)
        per_query["bm25"] = figures_of_results(tasks, of_bm25)
    if settings.rerank:
        reranked = _reranked(settings, tasks, encoder, runs)
        stages |= reranking_stages(reranked, settings.rerank_top or _RERANK_TOP)
        results = [one.result for one in reranked]
        per_query["candidates"] = figures_of_results(tasks, [one.candidates for one in reranked])
        per_query["reranked"] = figures_of_results(tasks, results)
    else:
        results = [evaluate_task(encoder, task, show_progress_bar=True) for task in tasks]
        stages["model"], per_query["model"] = flat_metrics(results), figures_of_results(tasks, results)
    if settings.fuse_with:
        results = _fused(settings, tasks, results, encoder)
        stages["fused"], per_query["fused"] = flat_metrics(results), figures_of_results(tasks, results)
    if settings.output:
        write_stages(settings.output, stages)
    if settings.per_query:
        write_per_query(settings.per_query, per_query)
    if settings.runs:
        for result in results:
            replace_text(settings.runs / f"{result.name}.trec", trec_run_text(result.run))
    print_stages(stages)


def _check_fusion(settings: Namespace) -> None:
    """Raise a UserError where what `--with` asks for cannot be had, or other options wait for it."""
    given = {"--fusion": settings.fusion, "--weight": settings.weight}
    if settings.fuse_with is None and (alone := [name for name, value in given.items() if value is not None]):
        raise UserError(f"{' and '.join(alone)} say how rankings are made one; give --with, too.")
    if settings.weight is not None and settings.fusion != "sum":
        raise UserError("--weight is that of a sum; give --fusion sum, too.")
    if settings.fuse_with not in (None, "bm25"):
        from splade_lit.encoder.layout import model_folder
        from splade_lit.teachers.kinds import check_installed
        from splade_lit.teachers.sentence_encoder import check_sentence_encoder

        check_installed("--with")
        check_sentence_encoder(model_folder(settings.fuse_with), settings.fuse_with)


def _fused(
    settings: Namespace,
    tasks: "Sequence[RetrievalTask]",
    results: "Sequence[TaskResult]",
    encoder: "AsymmetricSparseEncoder",
) -> "list[TaskResult]":
    """The model's rankings made one with those of BM25 or of a sentence encoder."""
    from splade_lit.evaluation.bm25 import best_bm25
    from splade_lit.evaluation.fusion import dense_run, fuse

    if settings.fuse_with == "bm25":
        others = [result.run for result in best_bm25(tasks, encoder.tokenizer)[1]]
    else:
        others = [dense_run(task, settings.fuse_with, pick_device(settings.device)) for task in tasks]
    weight = 0.5 if settings.weight is None else settings.weight
    pairs = zip(tasks, results, others, strict=True)
    return [fuse(task, result, other, settings.fusion or "rrf", weight) for task, result, other in pairs]


def _check_reranking(settings: Namespace) -> None:
    """Raise a UserError where there is nothing to re-rank, or options do not go together."""
    if settings.rerank is None:
        if settings.rerank_top is not None:
            raise UserError("--rerank-top says how many candidates are re-ranked; give --rerank, too.")
        return
    if settings.fuse_with is not None:
        raise UserError("--rerank and --with are two ways to use another ranking; give one of them.")
    if settings.rerank != "bm25" and not Path(settings.rerank).exists():
        raise UserError(f"--rerank: there is no {settings.rerank}; give bm25, a run in TREC's format, or a folder.")


def _reranked(
    settings: Namespace,
    tasks: "Sequence[RetrievalTask]",
    encoder: "AsymmetricSparseEncoder",
    runs: "Sequence[Run] | None",
) -> "list[Reranked]":
    """The first candidates of rankings, of BM25's if none are given, re-ranked by the model."""
    from splade_lit.evaluation.bm25 import best_bm25
    from splade_lit.evaluation.reranking import rerank

    if runs is None:
        found = [result.run for result in best_bm25(tasks, encoder.tokenizer)[1]]
        runs = [
            {query: {id: score for id, score in hits.items() if score} for query, hits in run.items()} for run in found
        ]
    top = settings.rerank_top or _RERANK_TOP
    return [rerank(encoder, task, run, top, show_progress_bar=True) for task, run in zip(tasks, runs, strict=True)]


def _read_runs(path: Path, tasks: "Sequence[RetrievalTask]") -> "list[Run]":
    """The ranking of each task: a file, or files in a folder as `--runs` writes them."""
    if path.is_dir():
        files = [path / f"{task.name}.trec" for task in tasks]
        if missing := [file.name for file in files if not file.is_file()]:
            raise UserError(f"{path} has no {missing[0]}; a folder of runs needs a file for each task.")
        return [read_trec_run(file) for file in files]
    if len(tasks) > 1:
        raise UserError(f"{path} is one run, but there are {len(tasks)} tasks; give a folder with TASK.trec for each.")
    return [read_trec_run(path)]


def _share(text: str) -> float:
    """A number from 0 to 1, as the type of an option."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ArgumentTypeError(f"must be a number from 0 to 1, not {text}")
    return number


def _parser() -> CommandParser:
    parser = CommandParser("evaluate", "Retrieval and sparsity figures of a saved model.")
    parser.add_shared("--model", "--revision")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=["msmarco", "nfcorpus", "nq"],
        help="NanoBEIR names, `docstrings`, folders in BEIR's, MS MARCO's, TREC's (FOLDER[:SPLIT]) or NanoBEIR's "
        "layout, or irds:ID of ir_datasets (default: msmarco nfcorpus nq)",
    )
    parser.add_shared("--nanobeir-source", "--nanobeir-revision", "--max-corpus-documents")
    parser.add_argument(
        "--measures",
        nargs="+",
        default=[],
        metavar="NAME",
        help="measures by the names of ir_measures beside the metrics, such as nDCG@10 RR@10 R@1000 'AP(rel=2)@100'",
    )
    parser.add_argument("--bm25", action="store_true", help="evaluate BM25 too (the better of words and WordPieces)")
    parser.add_argument(
        "--with",
        dest="fuse_with",
        metavar="OTHER",
        help="make the ranking one with that of bm25 or of a sentence encoder (folder, Hub id or package:NAME/FOLDER)",
    )
    parser.add_argument(
        "--fusion",
        choices=["rrf", "sum"],
        help="how: reciprocal ranks, or the sum of scores brought to one scale (default: rrf)",
    )
    parser.add_argument("--weight", type=_share, help="of the model in the sum, 0 to 1 (default: 0.5)")
    parser.add_argument(
        "--rerank",
        metavar="RUN",
        help="re-rank the first candidates of bm25 or of a run in TREC's format (a file, or a folder with TASK.trec "
        "for each task), in place of a search of the corpus",
    )
    parser.add_argument(
        "--rerank-top", type=positive_int, metavar="N", help=f"candidates of a query (default: {_RERANK_TOP})"
    )
    parser.add_argument(
        "--leave-out-queries",
        action=BooleanOptionalAction,
        help="leave the document with a query's own id out of its ranking (default: where a BEIR folder's queries are "
        "documents too, as in ArguAna)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file for all figures, an object for each of `bm25`, `model`, `fused` or, with --rerank, "
        "`candidates`, `reranked`, `reranked_with_positives`",
    )
    parser.add_argument("--per-query", type=Path, help="jsonl file for the figures of each query, which compare takes")
    parser.add_shared(*LIMITS)
    rankings = "folder for the rankings, one file in TREC's run format a task; those made one or re-ranked, if so asked"
    parser.add_argument("--runs", type=Path, help=rankings)
    parser.add_shared("--device")
    return parser


if __name__ == "__main__":
    run_command(main)
