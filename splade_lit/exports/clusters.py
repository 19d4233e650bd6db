"""Files to load into OpenSearch or Elasticsearch: the index, documents in the form of `_bulk`, queries.

create_index.json   body of PUT /NAME
bulk-00000.ndjson   bodies of POST /NAME/_bulk, of a size that a cluster takes
query.json          an example of POST /NAME/_search
msearch.ndjson      a file of queries as the body of POST /NAME/_msearch, if one is given
features.json       tokens that have another name in the index, with it; query weights need the same names
tokenizer.zip       for OpenSearch's doc-only mode: a tokenizer model with our query table
register.json       body of POST /_plugins/_ml/models/_register for it
"""

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
from scipy.sparse import csr_array

from splade_lit.core.errors import UserError
from splade_lit.core.progress import WorkProgress
from splade_lit.core.text import warn_once
from splade_lit.encoder.query_side import QuerySide
from splade_lit.encoder.rows import split_rows
from splade_lit.engines.cluster_bodies import (
    MAX_FEATURE_WEIGHT,
    MAX_SEISMIC_VOCAB_SIZE,
    Ceilings,
    Field,
    Product,
    bulk_lines,
    check_document_ids,
    cut_to_feature,
    index_body,
    neural_sparse_body,
    query_body,
)
from splade_lit.engines.documents import Documents
from splade_lit.engines.features import FeatureNames
from splade_lit.exports.output import OutputFolder, compact

FILES = r"(create_index|query|features|register)\.json|bulk-\d{5,}\.ndjson|msearch\.ndjson|tokenizer\.zip"
_HITS = 10
# A weight that changes no ranking: the tokenizer model gives 1 to tokens that it has no weight for, and refuses 0.
NO_WEIGHT = 1e-20
_SEISMIC_LEVELS = 255

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterRecord:
    """What was written: documents and their weights, the type of the field, files of documents, names that differ."""

    documents: int
    postings: int
    field: Field
    files: list[str]
    renamed: Mapping[str, str]
    ceilings: Ceilings | None = None


@dataclass(frozen=True)
class ClusterExport:
    """How documents and queries are written.

    Attributes:
        product: of which cluster.
        field: type of the field.
        names: of the dims.
        side: the query side of the model.
        doc_only: whether the cluster looks up the weights of queries.
    """

    product: Product
    field: Field
    names: FeatureNames
    side: QuerySide
    doc_only: bool = False

    def write(
        self,
        output: OutputFolder,
        documents: Documents,
        queries: Iterable[tuple[str, str]] | None,
        example: str,
        most_bytes: int,
    ) -> ClusterRecord:
        """Write all files.

        Args:
            output: where to.
            documents: what is indexed.
            queries: ids and texts of queries.
            example: text of the query that query.json has.
            most_bytes: of a file of documents.

        Raises:
            UserError: weights, ids or the number of dims are none that the engine takes, or the folder cannot be
                written.
        """
        ceilings = None
        if self.field == "sparse_vector" and self.product == "opensearch":
            if documents.vocab_size > MAX_SEISMIC_VOCAB_SIZE:
                raise UserError(
                    f"OpenSearch's sparse_vector tells {MAX_SEISMIC_VOCAB_SIZE:,} dims apart, and the model has "
                    f"{documents.vocab_size:,}; give --field rank_features."
                )
            ceilings = ceilings_of(documents, self.side)
        output.write_json("create_index.json", index_body(self.product, self.field, ceilings))
        files, count, postings = self._write_documents(output, documents, most_bytes)
        output.write_json("query.json", self.body(example, _HITS))
        if queries is not None:
            output.write_lines("msearch.ndjson", self._msearch_lines(queries))
        if self.names.renamed:
            output.write_json("features.json", self.names.renamed)
        if self.doc_only:
            self._write_tokenizer(output)
        return ClusterRecord(count, postings, self.field, files, self.names.renamed, ceilings)

    def body(self, text: str, k: int) -> dict[str, object]:
        """The body of the search for a text."""
        if self.doc_only:
            return neural_sparse_body(k, text=text, model_id="MODEL_ID")
        return query_body(self.product, self.field, self.weights(text), k)

    def weights(self, text: str) -> dict[str, float]:
        """Feature to weight of a query: what the engine refuses is left out or, with a warning, clipped."""
        ((dims, weights),) = split_rows(self.as_asked(self.side.encode(text)))
        kept = weights > 0
        return self.names.weights(dims[kept].tolist(), weights[kept])

    def as_asked(self, queries: csr_array) -> csr_array:
        """Query vectors as the engine takes them: SEISMIC's weights end at `MAX_FEATURE_WEIGHT`."""
        if (self.product, self.field) != ("opensearch", "sparse_vector"):
            return queries
        if (queries.data > MAX_FEATURE_WEIGHT).any():
            most = f"{MAX_FEATURE_WEIGHT:g}"
            warn_once(f"Weights of queries above {most} are clipped there, as the query neural_sparse takes no more.")
        return csr_array(queries.minimum(MAX_FEATURE_WEIGHT))

    def _write_documents(
        self, output: OutputFolder, documents: Documents, most_bytes: int
    ) -> tuple[list[str], int, int]:
        count = postings = 0
        files: list[str] = []

        def pairs() -> Iterator[str]:
            nonlocal count, postings
            for ids, vectors, texts in documents.parts():
                check_document_ids(ids)
                kept = _positive(vectors)
                for action, source in bulk_lines(ids, kept, texts, self.names):
                    count, postings = count + 1, postings + len(source["vector"])
                    yield f"{compact(action)}\n{compact(source)}"
                    progress.advance(1)

        with WorkProgress("writing", "documents", documents.num_documents) as progress:
            lines, ahead = pairs(), list[str]()
            while (first := ahead.pop() if ahead else next(lines, None)) is not None:
                name = f"bulk-{len(files):05d}.ndjson"
                output.write_lines(name, _up_to(first, lines, most_bytes, ahead))
                files.append(name)
        return files, count, postings

    def _msearch_lines(self, queries: Iterable[tuple[str, str]]) -> Iterator[str]:
        for _, text in queries:
            yield "{}"
            yield compact(self.body(text, _HITS))

    def _write_tokenizer(self, output: OutputFolder) -> None:
        """A zip of tokenizer and table, the same bytes each time, and what registers it as a model."""
        engine = self.side.tokenisation.tokenizer.backend_tokenizer
        table = doc_only_table(self.side)
        with output.new_file("tokenizer.zip") as path, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in (("tokenizer.json", engine.to_str()), ("idf.json", json.dumps(table))):
                archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)
        content = (output.folder / "tokenizer.zip").read_bytes()
        register = {
            "name": "splade_lit-tokenizer",
            "version": "1.0.0",
            "function_name": "SPARSE_TOKENIZE",
            "model_format": "TORCH_SCRIPT",
            "model_content_size_in_bytes": len(content),
            "model_content_hash_value": hashlib.sha256(content).hexdigest(),
            "url": "URL of tokenizer.zip, which the cluster fetches",
        }
        output.write_json("register.json", register)


def doc_only_table(side: QuerySide) -> dict[str, float]:
    """Token to weight as OpenSearch's tokenizer model must have it; what it cannot do as we do is told.

    It takes a token for what the tokenizer makes of its id alone, gives 1 to one without a weight, and refuses weights
    that are not positive: these get one that changes no ranking.

    Raises:
        UserError: the tokenizer has pieces that are no tokens when they stand alone, as those with a byte-level
            alphabet.
    """
    engine = side.tokenisation.tokenizer.backend_tokenizer
    special = {token.content for token in engine.get_added_tokens_decoder().values() if token.special}
    table, nothing, changed = {}, 0, 0
    for dim, weight in enumerate(side.weights.tolist()):
        token = engine.id_to_token(dim)
        if token is None:
            continue
        if token not in special and engine.decode([dim], skip_special_tokens=True) != token:
            changed += 1
        nothing += weight <= 0 and token not in special
        table[token] = float(str(np.float32(weight))) if weight > 0 else NO_WEIGHT
    if changed:
        raise UserError(
            f"OpenSearch's tokenizer model would write {changed:,} tokens in another way than documents have them; "
            "leave out --doc-only and send query weights."
        )
    if nothing:
        logger.warning("%d tokens without a positive weight get %g in idf.json, as 0 is refused.", nothing, NO_WEIGHT)
    if above := sum(weight > MAX_FEATURE_WEIGHT for weight in table.values()):
        raise UserError(f"{above} weights are above {MAX_FEATURE_WEIGHT:g}, which the query neural_sparse refuses.")
    lost = [token for token in special if side.weights[engine.token_to_id(token)] > 0]
    if lost:
        logger.warning("The tokenizer model leaves out special tokens, and %s would weigh something.", ", ".join(lost))
    if side.tokenisation.prompts.get("query"):
        logger.warning("The tokenizer model puts no prompt before a query; the model's is left out.")
    return table


def ceilings_of(documents: Documents, side: QuerySide) -> Ceilings:
    """The largest weights of documents and of the query table."""
    largest = max((float(vectors.data.max(initial=0)) for _, vectors, _ in documents.parts()), default=0.0)
    return Ceilings.of(largest, float(side.weights.max(initial=0)))


def as_stored(product: Product, field: Field, vectors: csr_array, ceiling: float | None = None) -> csr_array:
    """Document vectors as the engine keeps them: 9 significant bits, or 8-bit multiples of a ceiling's 255th part."""
    kept = _positive(vectors)
    if product == "opensearch" and field == "sparse_vector":
        top = ceiling or float(kept.data.max(initial=1))
        kept.data = (np.rint(np.minimum(kept.data / top, 1) * _SEISMIC_LEVELS) / _SEISMIC_LEVELS * top).astype(
            np.float32
        )
    else:
        kept.data = cut_to_feature(kept.data)
    kept.eliminate_zeros()
    return kept


def _positive(vectors: csr_array) -> csr_array:
    if (vectors.data < 0).any() or not np.isfinite(vectors.data).all():
        raise UserError("Weights of documents must be finite and not negative; the model that made them diverged.")
    kept = csr_array(vectors, dtype=np.float32, copy=True)
    kept.eliminate_zeros()
    return kept


def _up_to(first: str, rest: Iterator[str], most_bytes: int, ahead: list[str]) -> Iterator[str]:
    """Lines of so many bytes together, or the first; the one that is too much goes to `ahead`."""
    size = 0
    for line in chain([first], rest):
        length = len(line.encode()) + 1
        if size and size + length > most_bytes:
            ahead.append(line)
            return
        size += length
        yield line
