"""`python -m splade_lit.push`: what goes up, to a stand-in for the Hub, and what is refused."""

import base64
import hashlib
import json
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from command_runs import call, command
from hub_stand_in import serving
from huggingface_hub import ModelCard, constants
from safetensors.torch import save_file

from splade_lit import push
from splade_lit.card import __main__ as card
from splade_lit.card import upload
from splade_lit.core.errors import UserError
from splade_lit.encoder.model import AsymmetricSparseEncoder

REPOSITORY = "me/my-model"


@dataclass
class UploadHub:
    """What a Hub was sent.

    Attributes:
        endpoint: its address.
        refuses: status that every request is answered with, if any.
        created: bodies of requests to make a repository.
        branches: branches made.
        commits: messages, by branch.
        files: content by branch and path.
        tokens: what requests were authorised with.
        requests: method and path of each request.
    """

    endpoint: str = ""
    refuses: int | None = None
    created: list[dict[str, Any]] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    commits: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: UploadHub

    def do_POST(self) -> None:
        body = self._body()
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.refuses is not None:
            self._send(hub.refuses, {"error": "not for you"}, {"X-Error-Message": "not for you"})
        elif path == "/api/repos/create":
            there = bool(hub.created)
            hub.created.append(json.loads(body))
            self._send(409 if there else 200, {"url": f"{hub.endpoint}/{REPOSITORY}"})
        elif path == "/api/validate-yaml":
            ModelCard(json.loads(body)["content"])
            self._send(200, {"errors": [], "warnings": []})
        elif found := re.fullmatch(rf"/api/models/{REPOSITORY}/branch/(.+)", path):
            hub.branches.append(found[1])
            self._send(200, {})
        elif re.fullmatch(rf"/api/models/{REPOSITORY}/preupload/.+", path):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": modes})
        elif path == f"/{REPOSITORY}.git/info/lfs/objects/batch":
            objects = [
                one | {"actions": {"upload": {"href": f"{hub.endpoint}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(rf"/api/models/{REPOSITORY}/commit/(.+)", path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._send(404, {})

    def do_PUT(self) -> None:
        content = self._body()
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.hub.large[self.path.rpartition("/")[2]] = content
        self._send(200, {})

    def _commit(self, branch: str, lines: list[dict[str, Any]]) -> None:
        files = self.hub.files.setdefault(branch, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append((branch, value["summary"]))
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                files[value["path"]] = self.hub.large[value["oid"]]
        self._send(200, {"commitUrl": f"{self.hub.endpoint}/{REPOSITORY}/commit/abc", "commitOid": "abc"})

    def _body(self) -> bytes:
        self.hub.requests.append(f"{self.command} {self.path}")
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, code: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Silent."""


@contextmanager
def serve() -> Iterator[UploadHub]:
    hub = UploadHub()
    with serving(_Handler, hub=hub) as hub.endpoint:
        yield hub


@pytest.fixture
def hub(monkeypatch) -> Iterator[UploadHub]:
    """A stand-in that this process takes for the Hub, with a token for it."""
    with serve() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, for large files
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield hub


@pytest.fixture
def model(make_encoder, tmp_path) -> Path:
    """A saved model with a card."""
    folder = tmp_path / "model"
    make_encoder().save(folder)
    assert call(card.main, folder, "--license", "mit").code == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_folder_goes_up_in_one_commit(hub, model):
    (model / ".cache").mkdir()
    (model / ".cache" / "secret").write_text("hidden")
    (model / "__pycache__").mkdir()
    (model / "__pycache__" / "x.pyc").write_bytes(b"x")
    outcome = call(push.main, model, REPOSITORY)
    assert outcome.code == 0, outcome.err
    assert outcome.last_line == f"{hub.endpoint}/{REPOSITORY}/commit/abc"
    assert hub.commits == [("main", "Upload model")]
    expected = {name: content for name, content in contents(model).items() if not name.startswith((".", "__"))}
    assert hub.files == {"main": expected}
    assert {"README.md", "card.json", "modules.json", "document_0_MLMTransformer/model.safetensors"} <= set(expected)
    assert len(hub.large) == 2
    assert hub.tokens == {"Bearer hf_secret"}
    assert hub.created == [{"name": "my-model", "organization": "me"}]


def test_what_went_up_is_the_model(hub, model, tmp_path):
    assert call(push.main, model, REPOSITORY).code == 0
    for name, content in hub.files["main"].items():
        path = tmp_path / "fetched" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    ours, fetched = (AsymmetricSparseEncoder.load(folder) for folder in (model, tmp_path / "fetched"))
    texts = ["who wrote the song", "the river"]
    assert np.array_equal(
        ours.encode_document(texts, convert_to_csr=True).toarray(),
        fetched.encode_document(texts, convert_to_csr=True).toarray(),
    )


def test_private_branch_and_message(hub, model):
    arguments = ["--private", "--revision", "sparser", "--message", "lambda_d 1e-3"]
    outcome = call(push.main, model, REPOSITORY, *arguments)
    assert outcome.code == 0, outcome.err
    assert hub.created == [{"name": "my-model", "organization": "me", "visibility": "private"}]
    assert hub.branches == ["sparser"]
    assert hub.commits == [("sparser", "lambda_d 1e-3")]
    assert list(hub.files) == ["sparser"]


def test_a_repository_that_exists_is_used(hub, model):
    for message in ("one", "two"):
        assert call(push.main, model, REPOSITORY, "--message", message).code == 0
    assert hub.commits == [("main", "one"), ("main", "two")]


def test_a_card_that_nobody_edited_names_the_repository(hub, model):
    assert b"path/to/model" in (model / "README.md").read_bytes()
    assert call(push.main, model, REPOSITORY).code == 0
    text = hub.files["main"]["README.md"].decode()
    assert text.count(f'"{REPOSITORY}"') == 2
    assert "path/to/model" not in text
    assert ModelCard(text).data.license == "mit"
    assert text == (model / "README.md").read_text()


def test_an_edited_card_goes_up_as_it_is(hub, model):
    edited = (model / "README.md").read_text() + "\nMind the gap.\n"
    (model / "README.md").write_text(edited)
    assert call(push.main, model, REPOSITORY).code == 0
    assert hub.files["main"]["README.md"].decode() == edited


def test_as_users_run_it(model, tmp_path):
    with serve() as hub:
        changes = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_x"}
        outcome = command("splade_lit.push", model, REPOSITORY, cwd=tmp_path, HF_HOME=str(tmp_path), **changes)
    assert outcome.code == 0, outcome.err
    assert outcome.last_line.endswith("/commit/abc")
    assert hub.files["main"] == contents(model)


def test_a_dry_run_lists_and_sends_nothing(hub, model, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    before = contents(model)
    outcome = call(push.main, model, REPOSITORY, "--dry-run")
    assert outcome.code == 0, outcome.err
    *lines, last = outcome.out.splitlines()
    listed = {line.split()[-1]: " ".join(line.split()[:-1]) for line in lines}
    assert list(listed) == sorted(before, key=lambda name: Path(name).parts)
    assert listed["modules.json"] == f"{len(before['modules.json'])} bytes"
    weights = len(before["document_0_MLMTransformer/model.safetensors"])
    assert listed["document_0_MLMTransformer/model.safetensors"] == f"{weights / 1000:.1f} kB"
    assert last.endswith(f"{len(before)} files would go to {REPOSITORY}")
    assert hub.requests == []
    assert contents(model) == before


PICKLES = {
    "model.pt": lambda path: torch.save({"a": torch.zeros(2)}, path),
    "pytorch_model.bin": lambda path: torch.save({"a": torch.zeros(2)}, path),
    "old.bin": lambda path: torch.save({"a": 1}, path, _use_new_zipfile_serialization=False),
    "data": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "a.pkl": lambda path: path.write_text("text"),
    "last.ckpt": lambda path: path.write_text("text"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_refused(hub, model, name):
    (model / "inner").mkdir()
    PICKLES[name](model / "inner" / name)
    for arguments in ([], ["--dry-run"]):
        outcome = call(push.main, model, REPOSITORY, *arguments)
        assert (outcome.code, len(outcome.errors)) == (2, 1)
        assert f"holds pickles (inner/{name})" in outcome.errors[0]
    assert hub.requests == []


def test_what_is_no_pickle(model, tmp_path):
    assert not [name for name, path in upload.model_files(model).items() if upload.is_pickle(path)]
    # Lengths of headers that look like the start of a pickle.
    for size in range(0, 1500, 8):
        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"x": "y" * size})
        assert not upload.is_pickle(tmp_path / "model.safetensors")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)))
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    for name in ("empty", "weights.bin", "arrays.npz"):
        assert not upload.is_pickle(tmp_path / name)


def test_what_is_no_saved_model_is_refused(hub, model, tmp_path, make_masked_lm, tiny_tokenizer):
    make_masked_lm("bert", len(tiny_tokenizer)).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "empty").mkdir()
    weights = model / "query_0_SparseStaticEmbedding" / "model.safetensors"
    for folder, reason in (
        (tmp_path / "missing", "is not a folder"),
        (tmp_path / "empty", "it has no modules.json"),
        (tmp_path / "base", "it has no modules.json"),
    ):
        outcome = call(push.main, folder, REPOSITORY)
        assert (outcome.code, len(outcome.errors)) == (2, 1)
        assert reason in outcome.errors[0]
    weights.write_bytes(weights.read_bytes()[:-8])
    assert "damaged" in call(push.main, model, REPOSITORY).errors[0]
    assert hub.requests == []


def test_a_model_without_a_card_is_refused(hub, model):
    (model / "README.md").unlink()
    assert "python -m splade_lit.card" in call(push.main, model, REPOSITORY).errors[0]
    (model / "README.md").write_text("---\nlanguage: [en\n---\n# A card\n")
    assert "the YAML at its head cannot be read" in call(push.main, model, REPOSITORY).errors[0]
    assert hub.requests == []


@pytest.mark.parametrize("name", ["my-model", "a/b/c", "me/my model", "/model", "me/-x-"])
def test_names_that_no_repository_has(model, name):
    outcome = call(push.main, model, name, "--dry-run")
    assert (outcome.code, len(outcome.errors)) == (2, 1)
    assert repr(name) in outcome.errors[0]


def test_no_token(hub, model, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    outcome = call(push.main, model, REPOSITORY)
    assert (outcome.code, outcome.errors) == (
        2,
        ["error: There is no token for the Hub; run `hf auth login`, or set HF_TOKEN."],
    )
    assert hub.requests == []


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, "The Hub does not accept the token"),
        (403, f"The token may not write to {REPOSITORY}"),
        (500, f"The Hub refuses the upload to {REPOSITORY} (500): not for you."),
    ],
)
def test_a_hub_that_refuses(hub, model, status, sentence):
    hub.refuses = status
    outcome = call(push.main, model, REPOSITORY)
    assert (outcome.code, len(outcome.errors)) == (2, 1)
    assert sentence in outcome.errors[0]
    assert hub.commits == []


def test_no_network(hub, model, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be reached" in call(push.main, model, REPOSITORY).errors[0]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    outcome = call(push.main, model, REPOSITORY)
    assert (outcome.code, len(outcome.errors)) == (2, 1)
    assert "cannot be reached" in outcome.errors[0]


def test_the_sentences_name_no_token(hub, model):
    hub.refuses = 500
    outcome = call(push.main, model, REPOSITORY)
    assert "hf_secret" not in outcome.out + outcome.err


def test_files_of_nothing(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        upload.model_files(tmp_path / "missing")
