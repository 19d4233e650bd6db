"""What is sent to OpenSearch and Elasticsearch, against the types that their makers publish for TypeScript."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from splade_lit.engines.cluster_bodies import index_body, neural_sparse_body, query_body


@pytest.mark.slow
@pytest.mark.parametrize("product", ["elasticsearch", "opensearch"])
def test_bodies_have_the_types_of_the_clients_in_typescript(tmp_path, product):
    """The published types of both APIs; those of opensearch 3.9 know nothing of SEISMIC yet."""
    package = {"elasticsearch": "@elastic/elasticsearch", "opensearch": "@opensearch-project/opensearch"}[product]
    modules = next(
        (
            Path(place)
            for name in ("SPLADE_LIT_NODE_MODULES", "NODE_PATH")
            for place in os.environ.get(name, "").split(":")
            if all(Path(place, one).is_dir() for one in (package, "typescript", "@types/node"))
        ),
        None,
    )
    if modules is None or shutil.which("node") is None:
        pytest.skip(f"no Node.js, or no {package}, typescript and @types/node in SPLADE_LIT_NODE_MODULES")
    weights, actions = {"2023": 1.5, "7": 0.25}, [{"index": {"_id": "a"}}, {"vector": {"7": 1.5}, "text": "t"}]
    fields = ["rank_features"] if product == "opensearch" else ["rank_features", "sparse_vector"]
    searches = [
        query_body(product, field, asked, 10, only)
        for field in fields
        for asked, only in ((weights, None), (weights, ["a"]), ({}, None))
    ]
    if product == "opensearch":
        searches += [neural_sparse_body(10, weights=weights), neural_sparse_body(10, text="a b", model_id="m")]
        searches += [neural_sparse_body(10, text="a b", analyzer="bert-uncased")]
    creates = [index_body(product, field) for field in fields]
    asked = {"docs": [{"_id": "a", "_source": ["vector"]}]}
    requests = [("IndicesCreate", body) for body in creates] + [("Search", body) for body in searches]
    if product == "elasticsearch":
        settings = {"index.mapping.exclude_source_vectors": False}
        requests += [("IndicesCreate", creates[1] | {"settings": settings}), ("Mget", asked)]
        requests += [("Bulk", {"operations": actions})]
        lines = [f"const a{n}: estypes.{kind}Request = {json.dumps({'index': 'd', **body})};" for n, (kind, body) in
                 enumerate(requests)]  # fmt: skip
    else:
        requests += [("Mget", asked), ("Bulk", actions)]
        names = {"IndicesCreate": "Indices_Create"}
        lines = [
            f"const a{n}: API.{names.get(kind, kind)}_Request = {json.dumps({'index': 'd', 'body': body})};"
            for n, (kind, body) in enumerate(requests)
        ]
    lines.insert(0, f"import {{ {'estypes' if product == 'elasticsearch' else 'API'} }} from '{package}';")
    (tmp_path / "node_modules").symlink_to(modules, target_is_directory=True)
    options = (
        "--noEmit --strict --skipLibCheck --module nodenext --moduleResolution nodenext --target es2022 --types node"
    )
    compiler = ["node", modules / "typescript" / "bin" / "tsc", *options.split()]
    for text, passes in (("\n".join(lines), True), ("\n".join(lines).replace('"query"', '"queri"'), False)):
        (tmp_path / "check.ts").write_text(f"{text}\nexport {{}};\n")
        done = subprocess.run([*compiler, "check.ts"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert (done.returncode == 0) == passes, done.stdout
