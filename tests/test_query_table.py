"""`python -m splade_lit.query_table`: the query weights of a saved model moved towards the IDF of a corpus."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from command_runs import World, call, environment, make_world
from conftest import REPOSITORY, tiny_masked_lm
from safetensors.numpy import load_file

from splade_lit import AsymmetricSparseEncoder, load_query_side, query_table
from splade_lit.analysis.reestimate import corpus_frequencies, move_table
from splade_lit.data.corpus import open_corpus
from splade_lit.data.datamodule import PairsDataModule
from splade_lit.data.pairs import load_pairs
from splade_lit.data.tasks import load_tasks
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.idf import idf_of, moved_weights
from splade_lit.encoder.layout import document_side_fingerprint, find_saved
from splade_lit.encoder.query import IdfQueryEncoder
from splade_lit.evaluation.task_evaluation import evaluate_task

DF = np.array([0, 1, 3, 2, 3])
LEARNED = np.array([2.0, 3.0, 0.5, 0.0, 1.0], dtype=np.float32)


def test_weights_move_along_the_geometric_mean():
    """By hand: two tokens move, with document frequencies 1 and 3 and 3; `a` keeps their mean logarithm, by df."""
    idf = idf_of(DF, 4).astype(np.float64)
    after, movable = moved_weights(LEARNED, DF, 4, mix=0.5)
    assert movable.tolist() == [False, True, True, False, True]
    ratios = idf[[1, 2, 4]] / LEARNED[[1, 2, 4]].astype(np.float64)
    scale = (ratios[0] ** 1 * ratios[1] ** 3 * ratios[2] ** 3) ** (-1 / 7)
    expected = np.sqrt(LEARNED[[1, 2, 4]] * scale * idf[[1, 2, 4]])
    assert after[[1, 2, 4]] == pytest.approx(expected)
    assert after[[0, 3]].tolist() == [2.0, 0.0]  # never seen; switched off


def test_the_ends_of_the_mix():
    nothing, _ = moved_weights(LEARNED, DF, 4, mix=0.0)
    assert nothing.tolist() == LEARNED.tolist()
    wholly, movable = moved_weights(LEARNED, DF, 4, mix=1.0)
    ratio = wholly[movable] / idf_of(DF, 4)[movable]
    assert ratio == pytest.approx(np.full(3, ratio[0]))  # the corpus's IDF alone, by one scale


def test_with_the_training_corpus_what_was_learned_beyond_idf_stays():
    trained_df, correction = np.array([1, 4, 2, 2, 1]), np.array([1.0, 2.0, 0.5, 1.0, 3.0])
    reference = idf_of(trained_df, 5)
    learned = (reference * correction).astype(np.float32)
    after, movable = moved_weights(learned, DF, 4, 1.0, reference)
    kept = after[movable] / idf_of(DF, 4)[movable] / correction[movable]
    assert kept == pytest.approx(np.full(movable.sum(), kept[0]))
    same, _ = moved_weights(learned, trained_df, 5, 1.0, reference)
    assert same == pytest.approx(learned)  # nothing is different, so nothing moves


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer) -> World:
    world = make_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)
    document = MlmDocumentEncoder(tiny_masked_lm("bert", len(tiny_tokenizer)))
    weights = np.random.default_rng(0).uniform(0.2, 2, len(tiny_tokenizer)).astype(np.float32)
    encoder = AsymmetricSparseEncoder(IdfQueryEncoder(weights), document, tiny_tokenizer, max_document_tokens=24).eval()
    encoder.save(world.folder / "model")
    rows = [{"_id": f"d{n}", "text": row["document"]} for n, row in enumerate(load_pairs(str(world.pairs)).dataset)]
    (world.folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return world


def run(world: World, *arguments: object):
    return call(query_table.main, world.folder / "model", "--corpus", world.folder / "docs.jsonl", *arguments)


def test_frequencies_are_those_of_training(world, tiny_tokenizer):
    """`idf: corpus` counts the same documents in the same way."""
    side = load_query_side(world.folder / "model")
    counted = corpus_frequencies(side, open_corpus(str(world.folder / "docs.jsonl")))
    settings = {"num_eval_pairs": 0, "max_document_tokens": 24, "cache_dir": str(world.folder / "cache")}
    data = PairsDataModule(tiny_tokenizer, str(world.pairs), **settings)
    data.setup("fit")
    assert counted.num_documents == data.num_documents
    assert counted.document_frequencies.tolist() == data.document_frequencies(len(side.weights)).tolist()


def test_looking_writes_nothing_and_tells_what_moves(world):
    before = {path: path.stat().st_mtime_ns for path in (world.folder / "model").rglob("*")}
    outcome = run(world, "--top", 3)
    assert outcome.code == 0, outcome.err
    assert "64 documents with" in outcome.out
    assert "mix 0.5:" in outcome.out
    assert "written" not in outcome.out
    assert {path: path.stat().st_mtime_ns for path in (world.folder / "model").rglob("*")} == before
    side = load_query_side(world.folder / "model")
    table = move_table(side, corpus_frequencies(side, open_corpus(str(world.folder / "docs.jsonl"))), 0.5)
    rises, falls = table.largest(side, 3)
    assert [line.split()[0] for line in outcome.out.splitlines() if line.split()[:1] == [rises[0].token]]
    assert rises[0].after - rises[0].before >= rises[1].after - rises[1].before > 0
    assert falls[0].after - falls[0].before <= falls[1].after - falls[1].before < 0
    assert sum(table.factor_counts) == table.movable.sum()


def test_names_in_brackets_stay_as_they_are(world):
    folder = world.folder / "[b]" / "[/i]"
    folder.mkdir(parents=True)
    shutil.copy(world.folder / "docs.jsonl", folder)
    outcome = run(world, "--corpus", folder / "docs.jsonl", "--output", folder / "new[old]")
    assert outcome.code == 0, outcome.err
    assert f"corpus     {folder / 'docs.jsonl'}: 64 documents" in outcome.out
    assert outcome.last_line == f"written    {folder / 'new[old]'}"
    assert (folder / "new[old]").is_dir()


def test_the_training_corpus_is_what_frequencies_are_compared_with(world, tmp_path):
    rows = [json.loads(line) for line in (world.folder / "docs.jsonl").read_text().splitlines()]
    trained_on = tmp_path / "trained.jsonl"
    trained_on.write_text("".join(json.dumps({"_id": row["_id"], "body": row["text"]}) + "\n" for row in rows[::2]))
    given = ["--training-corpus", trained_on, "--training-text-column", "body", "--output", tmp_path / "fitted"]
    assert run(world, *given).code == 0
    side = load_query_side(world.folder / "model")
    counted, trained = (
        corpus_frequencies(side, open_corpus(str(path), column))
        for path, column in ((world.folder / "docs.jsonl", "text"), (trained_on, "body"))
    )
    expected = move_table(side, counted, 0.5, trained).after
    assert load_query_side(tmp_path / "fitted").weights.tolist() == expected.tolist()
    assert expected.tolist() != move_table(side, counted, 0.5).after.tolist()


def test_what_cannot_be_written_is_told_before_anything_is_read(world, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    outcome = call(query_table.main, world.folder / "model", "--corpus", "nowhere", "--output", tmp_path / "used")
    assert "is in use; give a new or an empty folder" in outcome.errors[0]
    outcome = call(query_table.main, "somebody/model", "--corpus", "nowhere", "--write")
    assert "is no folder of yours to change" in outcome.errors[0]


def test_a_copy_into_the_model_is_refused(world):
    inside = world.folder / "model" / "fitted"
    outcome = run(world, "--output", inside)
    assert outcome.code == 2
    assert outcome.errors == [
        f"error: {inside} is in the folder of the model that is copied; choose one outside of it."
    ]
    assert not inside.exists()


def test_only_the_table_of_the_copy_differs(world, tmp_path):
    output = tmp_path / "fitted"
    outcome = run(world, "--output", output)
    assert outcome.last_line.endswith(str(output))
    source = world.folder / "model"
    names = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert names == {path.relative_to(output) for path in output.rglob("*") if path.is_file()}
    differ = [str(name) for name in names if (source / name).read_bytes() != (output / name).read_bytes()]
    assert differ == ["query_0_SparseStaticEmbedding/model.safetensors"]
    fingerprints = [document_side_fingerprint(find_saved(folder)) for folder in (source, output)]
    assert fingerprints[0] == fingerprints[1]  # vectors of documents stay valid
    side = load_query_side(source)
    counted = corpus_frequencies(side, open_corpus(str(world.folder / "docs.jsonl")))
    expected = move_table(side, counted, 0.5).after
    assert load_query_side(output).weights.tolist() == expected.tolist()
    assert AsymmetricSparseEncoder.load(output).idf_weights.detach().numpy().tolist() == expected.tolist()
    again = run(world, "--output", output)
    assert "is in use; give a new or an empty folder" in again.errors[0]
    peer = pytest.importorskip("sentence_transformers").SparseEncoder(str(output), device="cpu")
    assert peer[0].sub_modules["query"][0].weight.detach().numpy().tolist() == expected.tolist()


def test_the_effect_on_a_task_is_that_of_evaluating_both(world, tmp_path):
    outcome = run(world, "--tasks", world.tasks, "--mix", 0.25, 1)
    assert outcome.code == 0, outcome.err
    run(world, "--mix", 1, "--output", tmp_path / "fitted")
    for task in load_tasks([str(world.tasks)]):
        lines = [line.split() for line in outcome.out.splitlines() if line.startswith(task.name)]
        assert [line[1] for line in lines] == ["learned", "mix", "mix"]
        for folder, line in ((world.folder / "model", lines[0]), (tmp_path / "fitted", lines[2])):
            ndcg = evaluate_task(AsymmetricSparseEncoder.load(folder), task).rank_metrics.means["ndcg@10"]
            assert f"{ndcg:.4f}" in line
        assert sum(map(int, lines[2][-2].split("/"))) == len(task.queries)


def test_an_export_of_before_is_told(world, tmp_path, caplog):
    """In the folder that is changed, and in the copy."""
    model = tmp_path / "model"
    shutil.copytree(world.folder / "model", model)
    (model / "onnx").mkdir()
    (model / "onnx" / "config.json").write_text("{}")
    for place, options in ((model, ["--write"]), (tmp_path / "copy", ["--output", tmp_path / "copy"])):
        caplog.clear()
        outcome = call(query_table.main, model, "--corpus", world.folder / "docs.jsonl", *options)
        assert outcome.code == 0, outcome.err
        assert f"{place / 'onnx'} has the query weights of before; export again." in caplog.text


def test_the_table_in_place_and_an_idf_json(world, tmp_path, tiny_tokenizer):
    model = tmp_path / "model"
    shutil.copytree(world.folder / "model", model)
    outcome = call(query_table.main, model, "--corpus", world.folder / "docs.jsonl", "--write")
    assert outcome.code == 0, outcome.err
    written = load_file(model / "query_0_SparseStaticEmbedding" / "model.safetensors")["weight"]
    assert written.tolist() == load_query_side(model).weights.tolist()
    assert written.tolist() != load_query_side(world.folder / "model").weights.tolist()
    plain = tmp_path / "plain"  # as OpenSearch publishes them
    shutil.copytree(world.folder / "model" / "document_0_MLMTransformer", plain)
    table = {token: 1.0 + id / 1000 for token, id in tiny_tokenizer.get_vocab().items()}
    (plain / "idf.json").write_text(json.dumps(table))
    before = load_query_side(plain).weights
    arguments = ["--corpus", world.folder / "docs.jsonl", "--output", tmp_path / "moved", "--mix", 1]
    assert call(query_table.main, plain, *arguments).code == 0
    side = load_query_side(plain)
    counted = corpus_frequencies(side, open_corpus(str(world.folder / "docs.jsonl")))
    assert load_query_side(tmp_path / "moved").weights == pytest.approx(move_table(side, counted, 1.0).after)
    assert load_query_side(plain).weights.tolist() == before.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mix", 1.5], "mix is 1.5; it must be from 0 to 1."),
        (["--mix", 0, 1, "--write"], "need one value of --mix"),
        (["--corpus", "gone.jsonl"], "gone.jsonl: there is no such file or folder."),
        (["--output", "a", "--write"], "not allowed with argument"),
    ],
)
def test_what_is_wrong_is_told(world, arguments, message):
    outcome = run(world, *arguments)
    assert outcome.code == 2
    assert message in outcome.errors[0]


def test_no_torch_is_needed(world):
    code = (
        "import sys; from splade_lit import query_table; "
        f"query_table.main([{str(world.folder / 'model')!r}, '--corpus', {str(world.folder / 'docs.jsonl')!r}]); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
