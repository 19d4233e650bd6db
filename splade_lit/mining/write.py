"""The data set that mining leaves: a file that `fit` reads, what it was made with, and what is in it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from splade_lit.core.errors import UserError
from splade_lit.core.files import replace_text, whole_file
from splade_lit.core.tables import FORMATS
from splade_lit.data.pairs import Pairs
from splade_lit.mining.candidates import Candidates
from splade_lit.mining.mine import Counts, Mined
from splade_lit.mining.n_tuples import check_ending, n_tuple_rows, n_tuple_schema, table_writer

METADATA = "splade_lit.mine"
"""The key in a parquet file's metadata under which its settings stand."""
_GROUP_ROWS = 8_192
_WRITTEN = "Written by `python -m splade_lit.mine`."


@dataclass(frozen=True)
class MinedFacts:
    """What was mined.

    Attributes:
        num_found: pairs by the number of their negatives, from none to all.
        answers: scores of the answers of pairs that have negatives.
        negatives: scores of the negatives.
        margins: by how much the answer of each negative's pair scores higher.
        counts: what was looked at.
    """

    num_found: Int64[np.ndarray, " negatives+1"]
    answers: Float32[np.ndarray, " pairs"]
    negatives: Float32[np.ndarray, " negatives"]
    margins: Float32[np.ndarray, " negatives"]
    counts: Counts

    @property
    def num_pairs(self) -> int:
        """All pairs."""
        return int(self.num_found.sum())

    @property
    def num_whole(self) -> int:
        """Pairs with as many negatives as were asked for."""
        return int(self.num_found[-1])


def mined_file(output: Path) -> Path:
    """The file to write: the output itself if it is named like one, else one in the folder that it names.

    Raises:
        UserError: it is named like a file of a form that is not written.
    """
    if output.suffix.lower() not in (*FORMATS, ".gz"):
        return output / "train.parquet"
    check_ending(output)
    return output


def write_mined(
    path: Path,
    pairs: Pairs,
    candidates: Candidates,
    mined: Iterable[Mined],
    num_negatives: int,
    counts: Counts,
    settings: Mapping[str, object],
    score_scale: float | None = None,
    drop_incomplete: bool = False,
) -> MinedFacts:
    """Write pairs with their negatives, as sentence-transformers' `n-tuple`; a reader never sees half of the file.

    The columns are `query`, `answer`, `positive_2` and so on where pairs have further answers, `negative_1` and so on,
    null where there are no more, and with `score_scale` a list of the scores of all documents of the row in this order.

    Args:
        path: the file, parquet or jsonl by its ending.
        pairs: what was mined for.
        candidates: the documents.
        mined: the negatives, a block at a time, in the order of the pairs.
        num_negatives: columns of negatives.
        counts: what was looked at, complete when `mined` is.
        settings: kept in the metadata of a parquet file.
        score_scale: write the scores, times this; what is counted stays as mined.
        drop_incomplete: leave out pairs with fewer negatives.

    Raises:
        UserError: no negative was found, or the file cannot be written.
    """
    documents = ["answer", *(f"positive_{n}" for n in range(2, pairs.num_positives + 1))]
    documents += [f"negative_{n}" for n in range(1, num_negatives + 1)]
    schema = n_tuple_schema(documents, score_scale is not None, METADATA, settings)
    num_found = np.zeros(num_negatives + 1, np.int64)
    seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def rows() -> Iterable[pa.RecordBatch]:
        for block in mined:
            found = (block.negatives >= 0).sum(axis=1)
            num_found[:] += np.bincount(found, minlength=num_negatives + 1)
            there, answer = block.negatives >= 0, block.answer_scores[:, :1]
            margins = (answer - block.negative_scores)[there]
            seen.append((answer[found > 0, 0], block.negative_scores[there], margins))
            kept = found == num_negatives if drop_incomplete else np.ones(len(found), bool)
            yield _rows(schema, pairs, candidates, block, kept, score_scale)

    try:
        with whole_file(path) as temporary:
            with table_writer(temporary, path.suffix, schema) as write:
                for group in _groups(rows()):
                    write(pa.Table.from_batches(group, schema))
            answers, negatives, margins = (np.concatenate(part) for part in zip(*seen, strict=True))
            facts = MinedFacts(num_found, answers, negatives, margins, counts)
            if not (facts.num_whole if drop_incomplete else len(facts.negatives)):
                raise UserError(f"No pair has {_asked(num_negatives, drop_incomplete)}; nothing is written. {_ADVICE}")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); free space or choose another folder.") from error
    return facts


_ADVICE = "Give wider --ranks, smaller margins, or a larger --corpus."


def _asked(num_negatives: int, all_of_them: bool) -> str:
    return f"{num_negatives} negatives" if all_of_them else "a negative"


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterable[list[pa.RecordBatch]]:
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if sum(len(one) for one in group) >= _GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group


def _rows(
    schema: pa.Schema,
    pairs: Pairs,
    candidates: Candidates,
    block: Mined,
    kept: np.ndarray,
    score_scale: float | None,
) -> pa.RecordBatch:
    part = pairs.select(block.pairs[kept])
    columns: list[list[str | None]] = [
        list(chain.from_iterable(part.batches(name))) for name in pairs.columns[: 1 + pairs.num_positives]
    ]
    for numbers in block.negatives[kept].T:
        columns.append([candidates.texts[number] if number >= 0 else None for number in numbers.tolist()])
    if score_scale is None:
        return n_tuple_rows(schema, columns)
    chosen_by = np.concatenate([block.answer_scores, block.negative_scores], axis=1)
    scores = chosen_by if block.written is None else block.written
    return n_tuple_rows(schema, columns, score_scale * scores[kept])


def check_notes(path: Path | None) -> None:
    """Raise a UserError if there is a README.md that `write_notes` has not written."""
    if path is not None and path.is_file() and _WRITTEN not in path.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{path} is not one of mined pairs, and would be replaced; give another --output.")


def write_notes(path: Path, settings: Mapping[str, object], report: Iterable[str]) -> None:
    """Write the README.md beside a mined file: the settings, and what was found."""
    given = "".join(f"- {name}: {value}\n" for name, value in settings.items() if value is not None)
    lines = "".join(f"{line}\n" for line in report)
    title = f"# Pairs with hard negatives\n\n{_WRITTEN}\n\n"
    replace_text(path, f"{title}{given}\n```text\n{lines}```\n")


def report(facts: MinedFacts) -> list[str]:
    """What was found, in lines for a person."""
    lines = [f"{'':12}{'mean':>9}{'least':>9}{'25 %':>9}{'50 %':>9}{'75 %':>9}{'most':>9}"]
    for name, values in (("answers", facts.answers), ("negatives", facts.negatives), ("margins", facts.margins)):
        figures = [values.mean(), *np.quantile(values, [0, 0.25, 0.5, 0.75, 1])]
        lines.append(f"{name:12}" + "".join(f"{figure:9.3f}" for figure in figures))
    for name, number in facts.counts.refused.items():
        total = facts.counts.candidates
        lines.append(f"{'left out':12}{number:,} of {total:,} documents in the ranks ({number / total:.1%}): {name}")
    fewer, none = facts.num_pairs - facts.num_whole - int(facts.num_found[0]), int(facts.num_found[0])
    whole = f"{facts.num_whole:,} of {facts.num_pairs:,} pairs have all {len(facts.num_found) - 1} negatives"
    lines.append(f"{'pairs':12}{whole}, {fewer:,} fewer, {none:,} none")
    return lines
