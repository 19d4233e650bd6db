"""What `python -m splade_lit.compare` says of files that it cannot use."""

import pytest
from command_runs import call
from compared_runs import Runs, assert_one_sentence, copy_run, make_runs

from splade_lit import compare

GROUP = "NanoBEIR_mean"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_tokenizer) -> Runs:
    return make_runs(tmp_path_factory.mktemp("runs"), tiny_tokenizer)


def broken(name: str, text: str) -> pytest.param:
    return pytest.param(name, text, id=f"{name}: {text[:12]!r}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        broken("metrics.json", "{"),
        broken("metrics.json", "[1]"),
        broken("metrics.json", '{"after": {"a": "b"}}'),
        broken("metrics.json", '{"after": 3}'),
        broken("metrics.csv", "loss\n1.0\n"),
        broken("metrics.csv", "step,loss\n1,abc\n"),
        broken("metrics.csv", "step,loss\nx,1\n"),
        broken("per_query.jsonl", "{\n"),
        broken("per_query.jsonl", '{"stage": "after", "task": "a"}\n'),
        broken("per_query.jsonl", "3\n"),
        broken("config.yaml", "a: [\n"),
        broken("emissions.csv", "a,b\n1,2\n"),
    ],
)
def test_a_broken_file_is_named_in_one_sentence(runs, tmp_path, name, text):
    run = copy_run(runs.dense, tmp_path / "run", "model")
    (run / name).write_text(text)
    outcome = call(compare.main, run, "--output", tmp_path / "page.html")
    assert_one_sentence(outcome, str(run / name))
    assert not (tmp_path / "page.html").exists()


def test_bad_input_is_told_in_one_sentence(runs, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    files = {
        "words.json": "[]",
        "none.json": "{}",
        "unnamed.json": '{"loss": 1.0}',
        "table.csv": "a,b\n1,2\n",
        "NanoBEIR_evaluation_mean_results.csv": "epoch,steps\n",
        "NanoNQ.trec": "q0 d0 1.0\n",
        "NanoFEVER.trec": "q0 Q0 d0 1 2.0 x\n",
        "NanoMSMARCO.trec": "other Q0 d0 1 2.0 x\n",
        "nothing.jsonl": "\n",
        "notes.md": "hello",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    output = ["--output", tmp_path / "page.html"]
    assert_one_sentence(call(compare.main, *output), "Nothing to compare")
    assert_one_sentence(call(compare.main, tmp_path / "no", *output), f"{tmp_path / 'no'} is not a folder")
    assert_one_sentence(call(compare.main, empty, *output), f"{empty} holds no run")
    assert_one_sentence(call(compare.main, runs.dense, runs.dense, *output), "is given twice")
    assert_one_sentence(call(compare.main, runs.dense, "--set", "NanoFEVER", *output), "'NanoFEVER'", GROUP)
    assert_one_sentence(call(compare.main, runs.dense, "--output", empty), f"{empty} is a folder")
    assert_one_sentence(call(compare.main, runs.dense, "--results", tmp_path / "no.json", *output), "no such file")
    for name in files:
        path = tmp_path / name
        assert_one_sentence(call(compare.main, runs.dense, "--results", path, *output), str(path))
    assert_one_sentence(
        call(compare.main, runs.dense, "--results", f"dense={tmp_path / 'unnamed.json'}", *output), "unnamed.json"
    )
    (tmp_path / "good.json").write_text('{"NanoNQ_dot_ndcg@10": 0.5}')
    assert_one_sentence(
        call(compare.main, runs.dense, "--results", f"dense={tmp_path / 'good.json'}", *output), "'dense'"
    )
    assert not (tmp_path / "page.html").exists()
