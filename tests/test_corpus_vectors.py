"""`python -m splade_lit.encode` and searching what it wrote."""

import json
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from command_runs import call, environment
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from splade_lit import encode, search
from splade_lit.core.errors import UserError
from splade_lit.core.files import hold_folder
from splade_lit.core.stores import open_store
from splade_lit.data.corpus import Corpus, open_corpus
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.pruning import Pruning
from splade_lit.engines import shards as corpus_vectors
from splade_lit.engines.shards import Shard, read_corpus_vectors, write_corpus_vectors

TEXTS = [
    "the song of the musical",
    "",
    "river and water " * 9,
    "heart disease",
    "a cell protein",
    "king and queen",
    "who",
]


@pytest.fixture
def model(encoder, tmp_path) -> Path:
    encoder.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "docs.jsonl"
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(TEXTS)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def command(model: Path, corpus: Path, output: Path, *more: object):
    return call(encode.main, "--model", model, "--corpus", corpus, "--output", output, *more)


def test_no_second_process_writes_to_a_folder(model, corpus, tmp_path):
    held = hold_folder(tmp_path / "vectors")
    outcome = command(model, corpus, tmp_path / "vectors")
    assert (outcome.code, len(list((tmp_path / "vectors").iterdir()))) == (2, 1)
    assert "is being written by another process" in outcome.errors[0]
    held.release()
    assert command(model, corpus, tmp_path / "vectors").code == 0


@pytest.mark.parametrize("shard_documents", [1, 4, 100])
def test_vectors_are_the_encoders(encoder, model, corpus, tmp_path, shard_documents):
    outcome = command(model, corpus, tmp_path / "vectors", "--shard-documents", shard_documents)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == f"vectors: {tmp_path / 'vectors'}  documents 6"
    ids, vectors, header = read_corpus_vectors(tmp_path / "vectors")
    assert ids == ["d0", "d2", "d3", "d4", "d5", "d6"]
    assert header.num_documents == 6
    assert len(list((tmp_path / "vectors").glob("shard-*"))) == -(-6 // shard_documents)
    expected = encoder.encode_document([text for text in TEXTS if text]).to_dense()
    torch.testing.assert_close(torch.from_numpy(vectors.toarray()), expected, rtol=1e-5, atol=1e-5)
    assert vectors.indices.dtype == np.int32


def test_float16_halves_the_values(encoder, model, corpus, tmp_path):
    assert command(model, corpus, tmp_path / "half", "--values", "float16").code == 0
    with np.load(tmp_path / "half" / "shard-00000.npz") as shard:
        assert shard["data"].dtype == np.float16
    _, vectors, _ = read_corpus_vectors(tmp_path / "half")
    expected = encoder.encode_document([text for text in TEXTS if text]).to_dense()
    torch.testing.assert_close(torch.from_numpy(vectors.toarray()), expected, rtol=1e-3, atol=1e-3)


def test_an_interrupted_run_goes_on(encoder, corpus, tmp_path, monkeypatch):
    folder, settings = tmp_path / "vectors", {"shard_documents": 2}
    whole = tmp_path / "whole"
    write_corpus_vectors(encoder, open_corpus(str(corpus)), whole, "a model", **settings)
    encoded = []
    encode_document_tokens = encoder.encode_document_tokens

    def stop_in_the_second_shard(token_ids, **settings):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.extend(token_ids)
        return encode_document_tokens(token_ids, **settings)

    monkeypatch.setattr(encoder, "encode_document_tokens", stop_in_the_second_shard)
    with pytest.raises(KeyboardInterrupt):
        write_corpus_vectors(encoder, open_corpus(str(corpus)), folder, "a model", **settings)
    with pytest.raises(UserError, match=r"whole corpus; run python -m splade_lit\.encode again"):
        read_corpus_vectors(folder)
    encoded.append("")  # no longer two
    write_corpus_vectors(encoder, open_corpus(str(corpus)), folder, "a model", **settings)
    assert len(encoded) == 6 + 1  # the first shard was not encoded again
    ids, vectors, header = read_corpus_vectors(folder)
    expected_ids, expected, expected_header = read_corpus_vectors(whole)
    assert (ids, header) == (expected_ids, expected_header)
    assert (vectors != expected).nnz == 0


def test_memory_is_bounded_by_a_shard(encoder, corpus, tmp_path, monkeypatch):
    sizes = count_encoded(encoder, monkeypatch)
    monkeypatch.setattr(corpus_vectors, "_CHUNK_DOCUMENTS", 2)
    write_corpus_vectors(encoder, open_corpus(str(corpus)), tmp_path / "vectors", "a model", shard_documents=3)
    assert sizes == [2, 1, 2, 1]


def count_encoded(encoder: AsymmetricSparseEncoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many documents each call is given."""
    sizes = []
    encode_document_tokens = encoder.encode_document_tokens
    monkeypatch.setattr(
        encoder,
        "encode_document_tokens",
        lambda token_ids, **settings: (sizes.append(len(token_ids)), encode_document_tokens(token_ids, **settings))[1],
    )
    return sizes


@pytest.mark.parametrize("change", ["grown", "shrunk", "one text", "one id"])
def test_a_corpus_that_changed_is_encoded_where_it_did(encoder, corpus, tmp_path, monkeypatch, change):
    folder, settings = tmp_path / "vectors", {"shard_documents": 2}
    write_corpus_vectors(encoder, open_corpus(str(corpus)), folder, "a model", **settings)
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    if change == "grown":
        rows += [{"_id": f"new{number}", "text": f"song {number}"} for number in range(3)]
    elif change == "shrunk":
        rows = rows[:4]
    elif change == "one text":
        rows[3]["text"] = "heart disease of the king"
    else:
        rows[3]["_id"] = "another"
    corpus.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sizes = count_encoded(encoder, monkeypatch)
    write_corpus_vectors(encoder, open_corpus(str(corpus)), folder, "a model", **settings)
    assert sizes == {"grown": [2, 1], "shrunk": [1], "one text": [2], "one id": [2]}[change]
    ids, vectors, _ = read_corpus_vectors(folder)
    write_corpus_vectors(encoder, open_corpus(str(corpus)), tmp_path / "anew", "a model", **settings)
    expected_ids, expected, _ = read_corpus_vectors(tmp_path / "anew")
    assert ids == expected_ids
    assert (vectors != expected).nnz == 0


def test_a_corpus_without_text_takes_no_vectors_away(encoder, corpus, tmp_path):
    folder = tmp_path / "vectors"
    write_corpus_vectors(encoder, open_corpus(str(corpus)), folder, "a model", shard_documents=2)
    shards = {path: path.read_bytes() for path in folder.glob("shard-*")}
    corpus.write_text('{"_id": "d0", "text": ""}\n', encoding="utf-8")
    with pytest.raises(UserError, match="no document has text"):
        write_corpus_vectors(encoder, open_corpus(str(corpus)), folder, "a model", shard_documents=2)
    assert {path: path.read_bytes() for path in folder.glob("shard-*")} == shards


def test_a_damaged_shard_is_made_again(encoder, model, corpus, tmp_path, caplog):
    folder = tmp_path / "vectors"
    assert command(model, corpus, folder, "--shard-documents", 2).code == 0
    shard = folder / "shard-00001.npz"
    expected = read_corpus_vectors(folder)[1]
    shard.write_bytes(shard.read_bytes()[:100])
    assert command(model, corpus, folder, "--shard-documents", 2).code == 0
    assert f"{shard} does not hold the corpus as it is now and is made again." in caplog.messages
    assert (read_corpus_vectors(folder)[1] != expected).nnz == 0


@pytest.mark.parametrize("flips", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_any_flipped_bit_is_found_and_mended(encoder, corpus, tmp_path, flips):
    folder, documents = tmp_path / "vectors", open_corpus(str(corpus))
    write_corpus_vectors(encoder, documents, folder, "a model", shard_documents=2)
    shard = folder / "shard-00001.npz"
    whole, expected = shard.read_bytes(), read_corpus_vectors(folder)[1]
    with ZipFile(shard) as archive:
        starts = [entry.header_offset for entry in archive.infolist()]
        header = archive.getinfo("data.npy").header_offset
    values = header + 30 + sum(struct.unpack_from("<HH", whole, header + 26)) + 128 + 5  # behind name, extra field, npy
    drawn = random.Random(flips)
    ends = range(starts[-1], len(whole))  # with the table of contents
    for place in [values, *starts, *drawn.sample(range(len(whole)), flips), *drawn.sample(ends, flips)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << drawn.randrange(8)
        shard.write_bytes(damaged)
        outcome = call(lambda _: read_corpus_vectors(folder))
        assert outcome.code == 2 or place != values
        if outcome.code:
            assert outcome.errors == [f"error: {shard} is damaged; remove it and encode the corpus again."]
            write_corpus_vectors(encoder, documents, folder, "a model", shard_documents=2)
            assert shard.read_bytes() == whole
        assert (read_corpus_vectors(folder)[1] != expected).nnz == 0


def test_a_stopped_command_tells_how_to_go_on(model, corpus, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(AsymmetricSparseEncoder, "encode_document_tokens", stop)
    outcome = command(model, corpus, tmp_path / "vectors")
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == "Stopped; the same command goes on after the last whole shard."


def test_another_model_or_corpus_is_refused(encoder, model, corpus, tmp_path):
    folder = tmp_path / "vectors"
    assert command(model, corpus, folder).code == 0
    assert command(model, corpus, folder).code == 0  # all there: nothing to do
    assert "another type of values; give a new folder" in command(model, corpus, folder, "--values", "float16").err
    assert "another size of shards; give" in command(model, corpus, folder, "--shard-documents", 3).err
    with torch.no_grad():
        encoder.document.decoder.bias += 0.1
    encoder.save(tmp_path / "other")
    shutil.copy(corpus, tmp_path / "same.jsonl")
    assert "another model and corpus; give" in command(tmp_path / "other", tmp_path / "same.jsonl", folder).err
    outcome = call(search.main, "--model", tmp_path / "other", "--vectors", folder, "song")
    assert outcome.code == 2
    assert (
        outcome.err == f"error: The vectors in {folder} are those of another model; encode the corpus with this one.\n"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine", encoding="utf-8")
    assert "holds no vectors" in command(model, corpus, tmp_path / "full").err


def test_search_finds_the_same_with_vectors(model, corpus, tmp_path):
    folder = tmp_path / "vectors"
    assert command(model, corpus, folder, "--shard-documents", 2).code == 0
    direct = call(search.main, "--model", model, "--corpus", corpus, "song of the king")
    stored = call(search.main, "--model", model, "--corpus", corpus, "--vectors", folder, "song of the king")
    assert stored.code == 0, stored.err
    assert stored.out == direct.out
    alone = call(search.main, "--model", model, "--vectors", folder, "song of the king")
    assert len(alone.out.splitlines()) == 1 + 2 * 6
    for source in (("--corpus", corpus), ("--vectors", folder)):
        limited = call(search.main, "--model", model, *source, "--limit", 2, "song of the king")
        assert [line for line in limited.out.splitlines() if line.endswith((" d0", " d2", " d3"))] != []
        assert "d3" not in limited.out
    nothing = call(search.main, "--model", model, "song")
    assert nothing.code == 2
    assert "give --corpus, or --vectors" in nothing.err


def test_stored_vectors_are_searched_without_a_transformer(model, corpus, tmp_path):
    assert command(model, corpus, tmp_path / "vectors").code == 0
    arguments = ["--model", str(model), "--vectors", str(tmp_path / "vectors"), "song of the king"]
    code = f"""
import sys
from splade_lit.search import main
main({arguments})
print(sorted({{"torch", "transformers", "datasets", "lightning"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout == call(search.main, *arguments).out + "[]\n"


def test_a_copy_of_the_model_has_the_same_vectors(model, corpus, tmp_path):
    assert command(model, corpus, tmp_path / "vectors").code == 0
    shutil.copytree(model, tmp_path / "copy")
    outcomes = [
        call(search.main, "--model", folder, "--vectors", tmp_path / "vectors", "song of the king")
        for folder in (model, tmp_path / "copy")
    ]
    assert outcomes[0].code == 0
    assert outcomes[1].out == outcomes[0].out


HOSTILE = ["\n", "\r\n", "\t", '"', "'", ",", "\\", "\0", " ", "\u2028", "\ufeff", "\u00e9", "null", "None", "[]"]


@given(ids=st.lists(st.lists(st.sampled_from(HOSTILE) | st.text(max_size=3)).map("".join), min_size=1, unique=True))
@settings(max_examples=60, deadline=None)
def test_any_ids_come_back_as_they_were(ids):
    encoder = SimpleNamespace(
        vocab_size=5,
        pruning=Pruning(),
        tokenisation=SimpleNamespace(documents=list),
        encode_document_tokens=lambda token_ids, on_batch: csr_array((len(token_ids), 5), dtype=np.float32),
    )
    corpus = Corpus(len(ids), lambda: ((id, "text") for id in ids), "a corpus")
    with TemporaryDirectory() as folder:
        write_corpus_vectors(encoder, corpus, folder, "a model", shard_documents=3)
        assert read_corpus_vectors(folder)[0] == ids


@pytest.mark.parametrize("changed", ["weights", "prompt", "limit"])
def test_vectors_of_a_model_that_changed_are_refused(encoder, model, corpus, tmp_path, changed):
    assert command(model, corpus, tmp_path / "vectors").code == 0
    if changed == "weights":
        encoder.document.decoder.bias.data[7] += 1e-3
    prompts = {"document": "song "} if changed == "prompt" else {}
    limit = 7 if changed == "limit" else None
    other = AsymmetricSparseEncoder(
        encoder.query, encoder.document, encoder.tokenizer, max_document_tokens=limit, prompts=prompts
    )
    other.save(model)
    outcome = call(search.main, "--model", model, "--vectors", tmp_path / "vectors", "song")
    assert (outcome.code, "are those of another model" in outcome.err) == (2, True)


def test_queries_may_change_while_vectors_stay(encoder, model, corpus, tmp_path):
    assert command(model, corpus, tmp_path / "vectors").code == 0
    encoder.idf_weights.data.fill_(0.5)
    encoder.save(model)
    outcome = call(search.main, "--model", model, "--vectors", tmp_path / "vectors", "song of the king")
    direct = call(search.main, "--model", model, "--corpus", corpus, "song of the king")
    ranks = [line for line in direct.out.splitlines() if ". " in line[:6]]
    assert outcome.code == 0
    assert [line for line in outcome.out.splitlines() if ". " in line[:6]] == ranks


def test_a_limit_reads_no_shard_beyond(model, corpus, tmp_path):
    folder = tmp_path / "vectors"
    assert command(model, corpus, folder, "--shard-documents", 2).code == 0
    (folder / "shard-00002.npz").write_bytes(b"damaged")
    ids, vectors, _ = read_corpus_vectors(folder, limit=3)
    assert ids == ["d0", "d2", "d3"]
    assert vectors.shape[0] == 3
    outcome = call(search.main, "--model", model, "--vectors", folder, "--limit", 4, "song of the king")
    assert outcome.code == 0, outcome.err
    assert call(search.main, "--model", model, "--vectors", folder, "--limit", 5, "song").code == 2


def test_shards_are_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "vectors"
    folder.mkdir()
    for number in (99_999, 100_000, 10_001, 7):
        (folder / Shard(number, []).name).touch()
    numbers = [int(name[6:-4]) for name in corpus_vectors._shard_names(open_store(folder))]
    assert numbers == [7, 10_001, 99_999, 100_000]


def test_a_folder_that_is_not_there_is_told(model, tmp_path):
    outcome = call(search.main, "--model", model, "--vectors", tmp_path / "nosuchfolder", "song")
    assert outcome.code == 2
    assert f"There is no folder {tmp_path / 'nosuchfolder'}; give one" in outcome.err


@pytest.mark.parametrize("hostile", ["size", "pickle", "bomb", "dims", "ids"])
def test_shards_of_strangers_are_refused(model, corpus, tmp_path, hostile):
    """Arrays that claim a terabyte, pickles, zip bombs, dims beyond the vocabulary, ids that are no strings."""
    folder = tmp_path / "vectors"
    assert command(model, corpus, folder).code == 0
    path = folder / "shard-00000.npz"
    with np.load(path) as shard:
        arrays = dict(shard)
    if hostile == "pickle":
        np.savez(path, **arrays | {"data": np.array([print], dtype=object)})
    elif hostile == "bomb":
        np.savez_compressed(path, **arrays | {"data": np.zeros(10_000_000, np.float32)})
    elif hostile == "dims":
        np.savez(path, **arrays | {"indices": arrays["indices"] + 100_000})
    elif hostile == "ids":
        np.savez(path, **arrays | {"ids": np.frombuffer(b"[1, 2, 3, 4, 5, 6]", np.uint8)})
    else:
        length = str(len(arrays["data"])).encode()
        path.write_bytes(path.read_bytes().replace(b"(" + length + b",)", b"(" + b"9" * len(length) + b",)"))
    outcome = call(search.main, "--model", model, "--vectors", folder, "song")
    assert (outcome.code, outcome.errors) == (2, [f"error: {path} is damaged; remove it and encode the corpus again."])


@pytest.mark.parametrize("damage", ["cut", "lost", "header"])
def test_damaged_folders_are_told(model, corpus, tmp_path, damage):
    folder = tmp_path / "vectors"
    assert command(model, corpus, folder, "--shard-documents", 2).code == 0
    shard = folder / "shard-00001.npz"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:100])
    elif damage == "lost":
        shard.unlink()
    else:
        (folder / "corpus.json").write_text("{}", encoding="utf-8")
    outcome = call(search.main, "--model", model, "--vectors", folder, "song")
    assert outcome.code == 2
    expected = {"cut": "is damaged", "lost": "holds 4 of 6 documents", "header": "whole corpus"}[damage]
    assert expected in outcome.err
