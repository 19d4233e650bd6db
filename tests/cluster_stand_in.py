"""A stand-in for OpenSearch and Elasticsearch: takes what their clients send over HTTP, and computes what queries say.

Indexes, documents in bulk, searches and the refusals of the real ones, as their documentation and source have them:
features are kept with 9 significant bits (Lucene's FeatureField), a score is the sum of float32 products.
"""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from tokenizers import Tokenizer

_MIN_NORMAL = 2.0**-126
_FEATURES = ("rank_features", "sparse_vector")


class Refusal(Exception):
    """What a cluster answers with a status of 400 or more."""

    def __init__(self, reason: str, status: int = 400, kind: str = "illegal_argument_exception") -> None:
        super().__init__(reason)
        self.reason, self.status, self.kind = reason, status, kind


@dataclass
class StoredIndex:
    """An index: its field of features, its settings, and its documents in the order of their last write."""

    kind: str
    mapping: dict[str, Any]
    settings: dict[str, Any]
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    features: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class Cluster:
    """A cluster and how it behaves.

    Attributes:
        product: `opensearch` or `elasticsearch`.
        version: of it.
        rounds: whether features keep 9 bits only.
        approximate: whether SEISMIC's 8-bit search answers, as in large segments.
        puts_off: so many documents are answered with 429 before one is taken.
        models: id to tokenizer and table of a tokenizer model.
    """

    product: str
    version: str
    rounds: bool = True
    approximate: bool = False
    puts_off: int = 0
    url: str = ""
    indexes: dict[str, StoredIndex] = field(default_factory=dict)
    models: dict[str, tuple[Tokenizer, dict[str, float]]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)

    @property
    def number(self) -> tuple[int, ...]:
        """The version as numbers."""
        return tuple(map(int, self.version.split(".")[:2]))

    def answer(self, method: str, path: str, parameters: dict[str, str], body: str) -> Any:
        """The answer to a request; None for HEAD."""
        self.requests.append((method, path))
        if path == "/":
            return {"version": {"number": self.version}, "tagline": "stand-in"}
        name, _, action = path.strip("/").partition("/")
        if method == "PUT" and not action:
            return self._create(name, json.loads(body))
        index = self.indexes.get(name)
        if index is None:
            raise Refusal(f"no such index [{name}]", 404, "index_not_found_exception")
        if method == "HEAD":
            return None
        if method == "DELETE":
            del self.indexes[name]
            return {"acknowledged": True}
        actions = {
            "_bulk": lambda: self._bulk(index, body),
            "_search": lambda: self._search(index, json.loads(body), parameters),
            "_msearch": lambda: self._msearch(index, body),
            "_mget": lambda: self._mget(index, json.loads(body)),
            "_refresh": lambda: {"_shards": {"failed": 0}},
            "_count": lambda: {"count": len(index.sources)},
            "_stats/store": lambda: {"_all": {"primaries": {"store": {"size_in_bytes": 4096}}}},
        }
        if action not in actions:
            raise Refusal(f"no handler found for uri [{path}] and method [{method}]")
        return actions[action]()

    def _create(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        if name in self.indexes:
            raise Refusal(f"index [{name}] already exists", kind="resource_already_exists_exception")
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise Refusal(f"Invalid index name [{name}]")
        settings = _flat(body.get("settings", {}))
        known = {"index.refresh_interval"}
        known |= {"index.sparse"} if self.product == "opensearch" and self.number >= (3, 3) else set()
        known |= {"index.mapping.exclude_source_vectors"} if self._hides_vectors else set()
        if unknown := set(settings) - known:
            raise Refusal(f"unknown setting [{min(unknown)}]")
        properties = body["mappings"]["properties"]
        mapping = properties["vector"]
        if mapping["type"] not in _FEATURES:
            raise Refusal(f"No handler for type [{mapping['type']}] declared on field [vector]")
        if self.product == "opensearch" and mapping["type"] == "sparse_vector":
            if self.number < (3, 3):
                raise Refusal("No handler for type [sparse_vector] declared on field [vector]")
            if not settings.get("index.sparse") or mapping.get("method", {}).get("name") != "seismic":
                raise Refusal("[sparse_vector] requires [method] parameter and index.sparse")
            parameters = mapping["method"]["parameters"]
            if set(parameters) - {"quantization_ceiling_ingest", "quantization_ceiling_search"}:
                raise Refusal("Unknown parameter found")
        elif set(mapping) != {"type"}:
            raise Refusal("unknown parameter on mapper [vector]")
        self.indexes[name] = StoredIndex(mapping["type"], mapping, settings)
        return {"acknowledged": True, "index": name}

    @property
    def _hides_vectors(self) -> bool:
        return self.product == "elasticsearch" and self.number >= (9, 2)

    def _bulk(self, index: StoredIndex, body: str) -> dict[str, Any]:
        if not body.endswith("\n"):
            raise Refusal("The bulk request must be terminated by a newline [\\n]")
        lines, items = iter(body.split("\n")[:-1]), []
        for line in lines:
            ((action, about),) = json.loads(line).items()
            source = None if action == "delete" else json.loads(next(lines))
            items.append({action: {"_id": about["_id"], **self._write(index, action, about["_id"], source)}})
        errors = any(item["status"] >= 300 for one in items for item in one.values())
        return {"errors": errors, "items": items}

    def _write(self, index: StoredIndex, action: str, id: str, source: dict[str, Any] | None) -> dict[str, Any]:
        if self.puts_off:
            self.puts_off -= 1
            return {"status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "queue is full"}}
        there = id in index.sources
        if source is None:
            index.sources.pop(id, None)
            index.features.pop(id, None)
            return {"status": 200 if there else 404, "result": "deleted" if there else "not_found"}
        try:
            if not 1 <= len(id.encode()) <= 512:
                raise Refusal(f"id [{id}] is too long, must be no longer than 512 bytes")
            if action == "create" and there:
                raise Refusal("document already exists", 409, "version_conflict_engine_exception")
            features = self._features(index, source["vector"])
        except Refusal as refusal:
            return {"status": refusal.status, "error": {"type": refusal.kind, "reason": refusal.reason}}
        index.sources.pop(id, None)
        index.features.pop(id, None)
        index.sources[id], index.features[id] = source, features
        return {"status": 200 if there else 201, "result": "updated" if there else "created"}

    def _features(self, index: StoredIndex, vector: dict[str, Any]) -> dict[str, float]:
        features = {}
        for name, value in vector.items():
            number = np.float32(value)
            if self.product == "elasticsearch" and "." in name:
                raise Refusal(f"[{index.kind}] fields do not support dots in feature names but found [{name}]")
            if not name:
                raise Refusal("field name cannot be an empty string")
            if self.product == "opensearch" and index.kind == "sparse_vector" and not name.isdigit():
                raise Refusal("[sparse_vector] fields should be valid integer")
            if not (np.isfinite(number) and number >= _MIN_NORMAL):
                raise Refusal(f"featureValue must be a positive normal float, got: {value} for feature {name}")
            features[name] = float(_nine_bits(number) if self.rounds else number)
        return features

    def _mget(self, index: StoredIndex, body: dict[str, Any]) -> dict[str, Any]:
        hidden = self._hides_vectors and index.settings.get("index.mapping.exclude_source_vectors") is not False
        docs = []
        for asked in body["docs"]:
            source = index.sources.get(asked["_id"])
            if source is None:
                docs.append({"_id": asked["_id"], "found": False})
                continue
            fields = [name for name in asked["_source"] if name in source and not (hidden and name == "vector")]
            docs.append({"_id": asked["_id"], "found": True, "_source": {name: source[name] for name in fields}})
        return {"docs": docs}

    def _msearch(self, index: StoredIndex, body: str) -> dict[str, Any]:
        lines = [json.loads(line) for line in body.split("\n")[:-1]]
        return {"responses": [self._search(index, one, {}) for one in lines[1::2]]}

    def _search(self, index: StoredIndex, body: dict[str, Any], parameters: dict[str, str]) -> dict[str, Any]:
        if set(body) - {"size", "query", "_source", "track_total_hits"}:
            raise Refusal("unknown key in the body of a search")
        if set(parameters) - {"search_pipeline"}:
            raise Refusal("unrecognized parameter")
        if body["size"] > 10_000:
            raise Refusal("Result window is too large")
        scores = self._query(index, body["query"])
        ranked = sorted(scores, key=lambda id: -scores[id])[: body["size"]]  # ties as documents were written
        hits = [{"_id": id, "_score": scores[id]} for id in ranked]
        return {"timed_out": False, "_shards": {"total": 1, "failed": 0}, "hits": {"hits": hits}}

    def _query(self, index: StoredIndex, query: dict[str, Any]) -> dict[str, float]:
        """Scores of the documents that match."""
        ((kind, content),) = query.items()
        if kind == "match_none":
            return {}
        if kind == "ids":
            return {id: 1.0 for id in content["values"] if id in index.sources}
        if kind == "bool":
            return self._bool(index, content)
        if kind == "rank_feature":
            return self._sum(index, dict([self._rank_feature(index, content)]))
        if kind == "sparse_vector" and self.product == "elasticsearch" and self.number >= (8, 15):
            if index.kind != "sparse_vector":
                raise Refusal("field [vector] must be type [sparse_vector] but is type [rank_features]")
            return self._sum(index, self._after_pruning(index, content))
        if kind == "neural_sparse" and self.product == "opensearch":
            return self._neural_sparse(index, content["vector"])
        raise Refusal(f"unknown query [{kind}]", kind="parsing_exception")

    def _bool(self, index: StoredIndex, content: dict[str, Any]) -> dict[str, float]:
        if set(content) - {"should", "must", "filter", "minimum_should_match"}:
            raise Refusal("[bool] query does not support this")
        clauses = content.get("should", [])
        if clauses and all("rank_feature" in clause for clause in clauses):
            if len(clauses) > 1024:
                raise Refusal("maxClauseCount is set to 1024", kind="too_many_nested_clauses")
            scores = self._sum(index, dict(self._rank_feature(index, one["rank_feature"]) for one in clauses))
        else:
            (must,) = content["must"]
            scores = self._query(index, must)
        for condition in content.get("filter", []):
            allowed = self._query(index, condition)
            scores = {id: score for id, score in scores.items() if id in allowed}
        return scores

    def _rank_feature(self, index: StoredIndex, content: dict[str, Any]) -> tuple[str, float]:
        if content.get("linear") != {} or set(content) != {"field", "linear", "boost"}:
            raise Refusal("this stand-in knows [linear] only")
        if content["boost"] < 0:
            raise Refusal("negative [boost] are not allowed")
        parent, _, feature = content["field"].rpartition(".")
        if parent != "vector" or index.kind != "rank_features":
            return "", 0.0  # an unmapped field matches nothing
        return feature, content["boost"]

    def _after_pruning(self, index: StoredIndex, content: dict[str, Any]) -> dict[str, float]:
        if set(content) - {"field", "query_vector", "prune"} or content["field"] != "vector":
            raise Refusal("[sparse_vector] unknown field")
        tokens = content["query_vector"]
        if any(weight < 0 for weight in tokens.values()):
            raise Refusal("boost must be a positive float")
        if not content.get("prune", self.number >= (9, 1)):
            return tokens
        frequencies = [name for features in index.features.values() for name in features]
        average = len(frequencies) / max(len(set(frequencies)), 1)
        best = max(tokens.values())
        return {
            name: weight
            for name, weight in tokens.items()
            if frequencies.count(name) <= 5 * average or weight >= 0.4 * best
        }

    def _neural_sparse(self, index: StoredIndex, content: dict[str, Any]) -> dict[str, float]:
        if set(content) - {"query_tokens", "query_text", "model_id", "method_parameters"}:
            raise Refusal("[neural_sparse] query does not support this field")
        tokens = content.get("query_tokens")
        if tokens is None:
            tokens = self._tokens_of(content["query_text"], content["model_id"])
        if any(not 0 < weight <= 64 for weight in tokens.values()):
            raise Refusal("weight must be in (0, 64]")
        if index.kind == "rank_features":
            if "method_parameters" in content:
                raise Refusal("[neural_sparse] query with [method_parameters] only works on [sparse_vector] fields")
            return self._sum(index, tokens)
        method = content["method_parameters"]
        scores = self._seismic(index, tokens, method) if self.approximate else self._sum(index, tokens)
        if "filter" in method:
            allowed = self._query(index, method["filter"])
            scores = {id: score for id, score in scores.items() if id in allowed}
        return scores

    def _tokens_of(self, text: str, model_id: str) -> dict[str, float]:
        if model_id not in self.models:
            raise Refusal("Failed to find model", 404)
        engine, table = self.models[model_id]
        ids = dict.fromkeys(engine.encode(text).ids)
        tokens = [token for id in ids if (token := engine.decode([id], skip_special_tokens=True))]
        return {token: table.get(token, 1.0) for token in tokens}

    def _seismic(self, index: StoredIndex, tokens: dict[str, float], method: dict[str, Any]) -> dict[str, float]:
        """Products of 8-bit weights, of the documents that have one of the first tokens."""
        ceilings = index.mapping["method"]["parameters"]
        ingest, search = ceilings["quantization_ceiling_ingest"], ceilings["quantization_ceiling_search"]
        kept = {name: _byte(weight, search) for name, weight in tokens.items()}
        first = sorted(tokens, key=lambda name: -tokens[name])[: method.get("top_n", 10)]
        scores = {}
        for id, source in index.sources.items():
            if any(name in source["vector"] for name in first):
                total = sum(
                    w * _byte(source["vector"][name], ingest) for name, w in kept.items() if name in source["vector"]
                )
                scores[id] = float(np.float32(total * ingest * search / 255**2))
        return {id: score for id, score in scores.items() if score > 0}

    def _sum(self, index: StoredIndex, tokens: dict[str, float]) -> dict[str, float]:
        scores = {}
        for id, features in index.features.items():
            products = [
                np.float32(weight) * np.float32(features[name]) for name, weight in tokens.items() if name in features
            ]
            if products:
                scores[id] = float(np.float32(sum(map(float, products))))
        return scores


def _nine_bits(number: np.float32) -> np.float32:
    return np.array(number, np.float32).view(np.uint32).__rshift__(15).__lshift__(15).view(np.float32)[()]


def _byte(weight: float, ceiling: float) -> int:
    return round(min(max(weight, 0), ceiling) * 255 / ceiling)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


@contextmanager
def serve(cluster: Cluster) -> Iterator[Cluster]:
    """Answer for a cluster on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # an answer goes out in one piece

        def _handle(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                content = gzip.decompress(content)
            path, _, query = self.path.partition("?")
            parameters = dict(part.split("=") for part in query.split("&") if part)
            status = 200
            try:
                answer = cluster.answer(self.command, path, parameters, content.decode())
            except Refusal as refusal:
                error = {"type": refusal.kind, "reason": refusal.reason}
                status, answer = refusal.status, {"error": error | {"root_cause": [error]}, "status": refusal.status}
            data = b"" if self.command == "HEAD" else json.dumps(answer).encode()
            self.send_response(status)
            if cluster.product == "elasticsearch":
                self.send_header("X-Elastic-Product", "Elasticsearch")
                self.send_header("Content-Type", "application/vnd.elasticsearch+json;compatible-with=9")
            else:
                self.send_header("Content-Type", "application/json; charset=UTF-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
