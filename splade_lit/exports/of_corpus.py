"""The formats that hold a corpus: what they have in common, from the command line to the files and what they cost."""

import logging
import shutil
from argparse import Namespace
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from splade_lit.command_line.arguments import LIMITS
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_writable
from splade_lit.core.queries import read_queries
from splade_lit.core.text import check_trec_ids
from splade_lit.encoder.layout import document_side_fingerprint, find_saved
from splade_lit.encoder.query_side import QuerySide, load_query_side
from splade_lit.engines.cluster_bodies import Product
from splade_lit.engines.documents import (
    CorpusSource,
    Documents,
    encoded_documents,
    indexed_documents,
    stored_documents,
)
from splade_lit.engines.exact import ENGINE, ExactIndex
from splade_lit.engines.features import FeatureNames
from splade_lit.engines.index import read_index_json
from splade_lit.exports.anserini import anserini_lines, topic_lines
from splade_lit.exports.ciff import write_ciff
from splade_lit.exports.clusters import FILES, ClusterExport, as_stored
from splade_lit.exports.impacts import Counts, scaled_back
from splade_lit.exports.output import VECTORS, LinesRecord, OutputFolder, compact, write_documents
from splade_lit.exports.vectors import index_lines, query_lines, query_weights, term_lines
from splade_lit.exports.vespa import VESPA_SCHEMA, vespa_lines, vespa_query

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from splade_lit.data.tasks import RetrievalTask
    from splade_lit.encoder.model import AsymmetricSparseEncoder

_POSTINGS = ".postings"
_LINES = r"documents-\d{5,}\.jsonl"
_EXAMPLE_HITS = 10

logger = logging.getLogger(__name__)


class Export:
    """A model with a corpus, on the way into a format.

    Args:
        settings: of the command.
        files: what names the files of the format have.
        topics: whether queries are written as lines of id, tab and tokens.

    Raises:
        UserError: there is no such model, corpus, index, task or file of queries, they do not belong together, the ids
            of queries have white space where topics cannot hold it, or the folder is in use or cannot be written.
    """

    def __init__(self, settings: Namespace, files: str, topics: bool = False) -> None:
        self._check_limits(settings)
        check_writable(folder=settings.output)
        read = [Path(path) for path in (settings.queries_file, settings.corpus) if path]
        self.settings, self.output = settings, OutputFolder(settings.output, settings.format, files, read)
        index = self._index(settings)
        source: str | Path | None = settings.model or (index.query_folder if index else None)
        if source is None:
            raise UserError(
                "Nothing to look queries up in: give --model, or --index made by python -m splade_lit.index."
            )
        self.side: QuerySide = load_query_side(source, revision=settings.revision)
        self.queries = list(read_queries(settings.queries_file)) if settings.queries_file else None
        if topics:
            check_trec_ids((id for id, _ in self.queries or ()), "a file of topics")
        self.tasks = self._tasks(settings)
        self._documents: Callable[[], Documents]
        model = document_side_fingerprint(find_saved(settings.model, settings.revision)) if settings.model else None
        if index is not None:
            if model is not None and index.model not in (None, model):
                raise UserError(
                    f"{settings.index} was made with another model; give the same one, or leave out --model."
                )
            self._documents = partial(indexed_documents, index)
            return
        assert model is not None, "there is a source"
        corpus = CorpusSource(settings.corpus, settings.text_column) if settings.corpus else None
        if settings.vectors is not None:
            stored = stored_documents(settings.vectors, model, corpus)
            self._documents = lambda: stored
        elif corpus is not None:
            self._documents = partial(
                encoded_documents,
                settings.model,
                settings.revision,
                settings.device,
                corpus,
                model,
                settings.output / VECTORS,
                vars(settings),
            )
        else:
            raise UserError(
                "Nothing to export: give --corpus, --vectors made by python -m splade_lit.encode, or --index."
            )

    @staticmethod
    def _check_limits(settings: Namespace) -> None:
        """Limits of documents are for those that are encoded here."""
        given = [option for option in LIMITS[1:] if getattr(settings, option[2:].replace("-", "_")) is not None]
        if given and (settings.vectors is not None or settings.index is not None):
            there = "--index" if settings.vectors is None else "--vectors"
            raise UserError(
                f"{given[0]} is for a corpus that is encoded now, and what {there} names is there already; encode it "
                "again with the limit, or leave it out."
            )

    @staticmethod
    def _index(settings: Namespace) -> ExactIndex | None:
        if settings.index is None:
            return None
        if others := [f"--{name}" for name in ("corpus", "vectors") if getattr(settings, name) is not None]:
            raise UserError(f"An index has documents and texts; leave out {' and '.join(others)}.")
        engine = read_index_json(settings.index).get("engine")
        if engine != ENGINE:
            raise UserError(f"{settings.index} is an index of {engine}, and an exact one is needed; or give --vectors.")
        return ExactIndex(settings.index)

    @staticmethod
    def _tasks(settings: Namespace) -> "list[RetrievalTask]":
        if not getattr(settings, "tasks", None):
            return []
        if settings.model is None:
            raise UserError("--tasks are encoded with the model; give --model, too.")
        from splade_lit.data.tasks import load_tasks
        from splade_lit.evaluation.task_evaluation import sample_corpus

        tasks = load_tasks(settings.tasks, settings.nanobeir_source, settings.nanobeir_revision)
        most = settings.max_corpus_documents
        return [sample_corpus(task, most) for task in tasks] if most else tasks

    def documents(self) -> Documents:
        """What is exported; a corpus is encoded now."""
        return self._documents()

    def names(self, documents: Documents, escaped: bool = True) -> FeatureNames:
        """Names of the dims: tokens, or numbers, as the command asks for."""
        if self.settings.names == "dims":
            return FeatureNames.of_dims(documents.vocab_size)
        return FeatureNames.of_query_side(self.side, documents.vocab_size, escaped)

    def done(self, record: object, line: str) -> None:
        """Write the last file, and print a line on what there is."""
        self.output.finish(record)
        print(f"{self.output.format}: {self.settings.output}  {line}")

    def report_loss(
        self,
        exported: Documents,
        documents: "Callable[[csr_array], csr_array]",
        queries: "Callable[[csr_array], csr_array]",
    ) -> None:
        """NDCG@10 of each task with the vectors as they are, and as they have been written.

        A task whose corpus has been exported needs no encoding.
        """
        if not self.tasks:
            logger.warning("What rounded weights cost in nDCG@10 was not measured; give --tasks to know.")
            return
        from splade_lit.exports.loss import TaskVectors, loss_line

        for task in self.tasks:
            found = TaskVectors.of_export(task, self.side, exported) or TaskVectors.encoded(
                task, self.side, self._encoder
            )
            print(loss_line(task.name, *found.loss(documents, queries)))

    @cached_property
    def _encoder(self) -> "AsymmetricSparseEncoder":
        from splade_lit.command_line.devices import pick_device
        from splade_lit.encoder.model import AsymmetricSparseEncoder

        device = pick_device(self.settings.device)
        encoder = AsymmetricSparseEncoder.load(self.settings.model, revision=self.settings.revision, device=device)
        encoder.pruning = encoder.pruning.changed(vars(self.settings))
        return encoder


def export_ciff(settings: Namespace) -> None:
    """Write a Common Index File, and queries with whole numbers beside it."""
    export = Export(settings, r"index\.ciff|queries\.tsv", topics=True)
    with export.output as output:
        documents = export.documents()
        names = export.names(documents)
        _tell(names, export.side)
        scratch = output.folder / _POSTINGS
        with output.new_file("index.ciff") as path:
            record = write_ciff(path, documents, names, scratch, settings.bits, settings.scale)
        shutil.rmtree(scratch)
        _write_topics(export, names)
        counts = f"documents {record.documents:,}  posting lists {record.terms:,}  postings {record.postings:,}"
        export.done(record, f"{counts}  scale {record.scale:.6g}  largest impact {record.largest:,}")
        if record.largest >= 2**settings.bits:
            most = 2**settings.bits - 1
            logger.warning("Impacts above %d do not fit %d bits; some readers cut them.", most, settings.bits)
        _tell_vanished(record.vanished)
        export.report_loss(documents, *_scaled(record.scale, settings.query_scale))


def export_anserini(settings: Namespace) -> None:
    """Write a JsonVectorCollection, and topics."""
    export = Export(settings, rf"documents/{_LINES}|queries\.tsv", topics=True)
    with export.output as output:
        documents = export.documents()
        names, counts = export.names(documents), Counts()
        _tell(names, export.side)
        lines = anserini_lines(documents, names, settings.scale, counts)
        write_documents(output, "documents/documents", lines, documents.num_documents)
        _write_topics(export, names)
        record = LinesRecord(counts.documents, counts.postings, counts.vanished, settings.scale)
        export.done(record, f"{_counts(record)}  scale {settings.scale:g}")
        _tell_vanished(counts.vanished)
        export.report_loss(documents, *_scaled(settings.scale, settings.query_scale))


def export_vespa(settings: Namespace) -> None:
    """Write a schema, a feed, an example of a query, and queries."""
    export = Export(settings, rf"{_LINES}|doc\.sd|query\.json|queries\.jsonl")
    with export.output as output:
        documents = export.documents()
        names, counts = export.names(documents), Counts()
        _tell(names, export.side)
        output.write_lines("doc.sd", [VESPA_SCHEMA.rstrip("\n")])
        lines = vespa_lines(documents, names, settings.scale, counts)
        write_documents(output, "documents", lines, documents.num_documents)

        def body(text: str) -> dict[str, object]:
            return vespa_query(query_weights(text, export.side, names), settings.scale, _EXAMPLE_HITS)

        output.write_json("query.json", body(settings.query))
        if export.queries is not None:
            asked = (compact({"id": id, "body": body(text)}) for id, text in export.queries)
            output.write_lines("queries.jsonl", asked)
        record = LinesRecord(counts.documents, counts.postings, counts.vanished, settings.scale)
        export.done(record, _counts(record))


def export_vectors(settings: Namespace) -> None:
    """Write plain lines."""
    export = Export(settings, rf"{_LINES}|queries\.jsonl")
    with export.output as output:
        documents, counts = export.documents(), Counts()
        if settings.form == "terms":
            names = export.names(documents, escaped=False)
            lines, asked = term_lines(documents, names, counts), names
        else:
            lines, asked = index_lines(documents, counts), None
        write_documents(output, "documents", lines, documents.num_documents)
        if export.queries is not None:
            output.write_lines("queries.jsonl", query_lines(export.queries, export.side, asked))
        record = LinesRecord(counts.documents, counts.postings)
        export.done(record, _counts(record))


def export_cluster(product: Product, settings: Namespace) -> None:
    """Write index body, documents and queries for OpenSearch or Elasticsearch."""
    doc_only = getattr(settings, "doc_only", False)
    if doc_only and (settings.field == "sparse_vector" or settings.names == "dims"):
        raise UserError(
            "With --doc-only the cluster looks up tokens: leave out --field sparse_vector and --names dims."
        )
    export = Export(settings, FILES)
    by_number = product == "opensearch" and settings.field == "sparse_vector"
    with export.output as output:
        documents = export.documents()
        names = FeatureNames.of_dims(documents.vocab_size) if by_number else export.names(documents, not doc_only)
        _tell(names, export.side)
        form = ClusterExport(product, settings.field, names, export.side, doc_only)
        most_bytes = settings.bulk_megabytes * 1_000_000
        record = form.write(output, documents, export.queries, settings.query, most_bytes)
        counts = f"documents {record.documents:,}  postings {record.postings:,}  files {len(record.files)}"
        export.done(record, f"{counts}  field {record.field}")
        ceiling = record.ceilings.ingest if record.ceilings else None
        stored = partial(as_stored, product, settings.field, ceiling=ceiling)
        export.report_loss(documents, stored, form.as_asked)


def _scaled(documents: float, queries: float) -> "list[Callable[[csr_array], csr_array]]":
    return [partial(scaled_back, scale=scale) for scale in (documents, queries)]


def _write_topics(export: Export, names: FeatureNames) -> None:
    if export.queries is None:
        return
    lines = topic_lines(export.queries, export.side, names, export.settings.query_scale)
    if empty := len(export.queries) - export.output.write_lines("queries.tsv", lines):
        have = f"{empty:,} queries have" if empty > 1 else "1 query has"
        logger.warning("%s no token with an impact; queries.tsv leaves out such queries, which readers end on.", have)


def _tell(names: FeatureNames, side: QuerySide) -> None:
    if negative := int((side.weights < 0).sum()):
        tokens = "1 token has a query weight" if negative == 1 else f"{negative:,} tokens have query weights"
        logger.warning("%s below 0, for which there is no place in this format; queries leave them out.", tokens)
    if names.renamed:
        said = ", ".join(f"{token!r} is {name}" for token, name in list(names.renamed.items())[:3])
        number = len(names.renamed)
        said = f"{number} token{' has' if number == 1 else 's have'} another name, in queries too: {said}"
        logger.warning("%s.", said)


def _tell_vanished(vanished: int) -> None:
    if vanished:
        are = f"{vanished:,} weights are" if vanished > 1 else "1 weight is"
        logger.warning("%s so small that the impact is 0, and left out.", are)


def _counts(record: LinesRecord) -> str:
    return f"documents {record.documents:,}  postings {record.postings:,}"
