"""A corpus to search: documents by id, from a file, a data set or a retrieval task."""

from pathlib import Path

from splade_lit.data.hub import plain_errors, read_dataset, require_text
from splade_lit.data.tasks import is_task, load_task
from splade_lit.errors import UserError

_ID_COLUMNS = ("_id", "id")


def load_corpus(source: str, text_column: str = "text", cache_dir: str | Path | None = None) -> dict[str, str]:
    """Document id to text.

    A `title` is put before the text, as BEIR does. Ids come from a column `_id` or `id`; without one they are row
    numbers, from 0. Documents without text are left out.

    Args:
        source: a file (jsonl, csv, tsv, txt with a document a line, each gzipped or not, or parquet), a Hub id or a
            folder in the layout of a Hub data set, or a retrieval task of one corpus (`docstrings`, `nq`, a BEIR
            folder).
        text_column: name of the column of texts.
        cache_dir: folder of the docstrings' cache.

    Raises:
        UserError: there is no such source, it has no such column, two documents share an id, or none has text.
    """
    if is_task(source):
        return load_task(source, cache_dir=cache_dir)[0].corpus
    dataset = read_dataset(source)
    require_text(dataset, (text_column,), source)
    id_column = next((name for name in _ID_COLUMNS if name in dataset.column_names), None)
    with plain_errors(source):  # a text may turn out not to be UTF-8
        ids = dataset[id_column][:] if id_column else list(range(len(dataset)))
        titles = dataset["title"][:] if "title" in dataset.column_names else [""] * len(dataset)
        texts = dataset[text_column][:]
    if missing := sum(id is None for id in ids):
        raise UserError(f"{source}: {missing} of {len(ids)} documents have no {id_column}; give each its own.")
    corpus = {
        str(id): f"{title or ''} {text or ''}".strip() for id, title, text in zip(ids, titles, texts, strict=True)
    }
    if copies := len(ids) - len(corpus):
        raise UserError(
            f"{source}: {copies} of {len(ids)} documents have the {id_column} of another; make them unique."
        )
    corpus = {id: text for id, text in corpus.items() if text}
    if not corpus:
        raise UserError(f"{source}: no document has text in the column {text_column}.")
    return corpus
