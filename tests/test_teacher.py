"""A frozen sentence encoder as teacher: its scores, the cache of its vectors, and training that learns from it."""

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from bm25s.stopwords import STOPWORDS_EN
from command_runs import call, load_checkpoint, rows
from tiny_runs import save_sentence_encoder

from splade_lit import fit
from splade_lit.command_line.devices import precision_on_cpu
from splade_lit.core.bm25 import singular
from splade_lit.core.errors import UserError
from splade_lit.data.datamodule import PairsDataModule
from splade_lit.data.pairs import hashes
from splade_lit.teachers.kinds import teacher_kind
from splade_lit.teachers.vectors import TextVectors, add_vectors, open_vectors

sentence_transformers = pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_tokenizer) -> Path:
    """A tiny random sentence encoder with prompts, as sentence-transformers saves it."""
    return save_sentence_encoder(tmp_path_factory.mktemp("teacher") / "model", tiny_tokenizer)


@pytest.fixture
def make(world, teacher, tmp_path):
    """Function of settings: a DataModule of pairs with hard negatives and this teacher, set up."""

    def make(**settings: Any) -> PairsDataModule:
        defaults = {"num_eval_pairs": 8, "batch_size": 8, "cache_dir": str(tmp_path / "cache"), "teacher": str(teacher)}
        data = PairsDataModule(**{"tokenizer": str(world.base), "source": str(world.pairs), **defaults, **settings})
        data.setup()
        return data

    return make


def cosines(teacher: Path, data: PairsDataModule, chosen: np.ndarray, max_tokens: int | None = None) -> torch.Tensor:
    """What sentence-transformers itself gives for the queries of rows and all their documents."""
    model = sentence_transformers.SentenceTransformer(str(teacher), device="cpu")
    model.max_seq_length = max_tokens or model.max_seq_length
    pairs = data._loaded()
    documents = [pairs[int(row)][name] for name in pairs.columns[1:] for row in chosen]
    queries = model.encode_query([pairs[int(row)]["query"] for row in chosen])
    return model.similarity(queries, model.encode_document(documents))


@pytest.mark.parametrize("settings", [{}, {"teacher_max_tokens": 5, "teacher_scale": 3.0}])
def test_scores_are_those_of_sentence_transformers(make, teacher, settings):
    negatives = ["negative_1", "negative_2"]
    data = make(negative_columns=negatives, **settings)
    scale = settings.get("teacher_scale", 20.0)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        positions = loader.sampler.batches()[0]
        batch = next(iter(loader))
        assert batch.teacher_scores.shape == (len(batch.queries), 3 * len(batch.queries))
        assert batch.teacher_scores.dtype == torch.float32
        expected = scale * cosines(teacher, data, loader.rows[positions], settings.get("teacher_max_tokens"))
        torch.testing.assert_close(batch.teacher_scores, expected, rtol=0, atol=2e-3 * scale)
        assert batch.to("cpu").teacher_scores is not None
    assert data.has_teacher


def bm25_of(data: PairsDataModule, chosen: np.ndarray) -> torch.Tensor:
    """BM25 of the queries of rows and all their documents, by Lucene's formula."""
    pairs = data._loaded()
    texts = {pairs[row][name] for row in range(len(pairs)) for name in pairs.columns[1:]}

    def words(text: str) -> list[str]:
        return [singular(word) for word in re.findall(r"\w\w+", text.lower()) if word not in STOPWORDS_EN]

    found = [words(text) for text in texts]
    length = np.mean([len(each) for each in found])

    def score(query: str, document: str) -> float:
        in_document, total = words(document), 0.0
        for word in words(query):
            number, count = sum(word in each for each in found), in_document.count(word)
            idf = math.log(1 + (len(found) - number + 0.5) / (number + 0.5))
            total += idf * count / (count + 1.2 * (0.25 + 0.75 * len(in_document) / length))
        return total

    documents = [pairs[int(row)][name] for name in pairs.columns[1:] for row in chosen]
    return torch.tensor([[score(pairs[int(row)]["query"], text) for text in documents] for row in chosen]).float()


@pytest.mark.parametrize(("settings", "scales"), [({}, (20.0, 1.0)), ({"teacher_scale": [3.0, 0.5]}, (3.0, 0.5))])
def test_several_teachers_are_averaged_bm25_among_them(make, teacher, settings, scales):
    data = make(negative_columns=["negative_1"], teacher=[str(teacher), "bm25"], **settings)
    loader = data.train_dataloader()
    chosen = loader.rows[loader.sampler.batches()[0]]
    expected = (scales[0] * cosines(teacher, data, chosen) + scales[1] * bm25_of(data, chosen)) / 2
    torch.testing.assert_close(next(iter(loader)).teacher_scores, expected, rtol=1e-4, atol=2e-3 * scales[0])
    alone = make(negative_columns=["negative_1"], teacher="bm25", cache_dir=str(teacher.parent / "none"))
    scores = next(iter(alone.train_dataloader())).teacher_scores
    torch.testing.assert_close(scores, bm25_of(data, chosen), rtol=1e-4, atol=1e-5)
    assert (scores.diagonal() > 0).any()
    assert not (teacher.parent / "none" / "teachers").exists()


def encode(texts: list[str]) -> np.ndarray:
    """A vector that tells its text: length, first and last character."""
    return np.array([[len(text), ord(text[0]), ord(text[-1])] for text in texts], np.float32)


def add(folder: Path, texts: list[str], encode=encode, parts=None) -> TextVectors:
    parts = open_vectors(folder) if parts is None else parts
    lengths = np.array([len(text) for text in texts])
    return add_vectors(parts, hashes(texts), lengths, lambda rows: [texts[r] for r in rows], encode, folder, "encoding")


def refuse(texts: list[str]) -> np.ndarray:
    raise AssertionError(f"{len(texts)} texts are encoded again")


def test_vectors_are_made_once_and_shared_by_data_that_share_texts(tmp_path):
    texts = [f"text {'x' * number}{number}" for number in range(50)]
    made = add(tmp_path / "a", texts)
    again = add(tmp_path / "a", texts[::-1], refuse)
    for vectors in (made, again):
        assert len(vectors) == 50
        chosen = vectors.rows(hashes(texts[7:3:-1]))
        np.testing.assert_array_equal(vectors.gather(chosen), encode(texts[7:3:-1]))
    more = add(tmp_path / "a", [*texts, "new"], lambda new: encode(new) if new == ["new"] else refuse(new))
    assert more.gather(more.rows(hashes(["new", texts[0]]))).tolist() == encode(["new", texts[0]]).tolist()
    assert more.rows(hashes(["never seen"])).tolist() == [-1]
    assert more.rows(hashes(["new"] * 6).reshape(2, 3)).shape == (2, 3)


def test_work_that_was_interrupted_goes_on_after_the_last_whole_part(tmp_path, monkeypatch):
    monkeypatch.setattr("splade_lit.teachers.vectors.PART_TEXTS", 10)
    texts = [f"text {'x' * number}" for number in range(35)]
    calls = []

    def interrupted(batch: list[str]) -> np.ndarray:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(batch))
        return encode(batch)

    with pytest.raises(KeyboardInterrupt):
        add(tmp_path, texts, interrupted)
    assert len(open_vectors(tmp_path)) == 2
    encoded = []
    vectors = add(tmp_path, texts, lambda batch: encoded.extend(batch) or encode(batch))
    assert encoded == texts[14::-1]  # the longest came first
    np.testing.assert_array_equal(vectors.gather(vectors.rows(hashes(texts))), encode(texts))


def test_a_damaged_part_is_made_again(tmp_path, caplog):
    texts = ["one", "three"]
    add(tmp_path, texts)
    (part,) = tmp_path.glob("*.vectors.npy")
    part.write_bytes(part.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING):
        vectors = add(tmp_path, texts)
    assert "is not whole and is made again" in caplog.text
    np.testing.assert_array_equal(vectors.gather(vectors.rows(hashes(texts))), encode(texts))
    add(tmp_path, texts, refuse)


def test_another_teacher_than_the_checkpoints_is_told(make, caplog) -> None:
    state = make(teacher="bm25").state_dict()
    make(teacher="bm25").load_state_dict(state)
    assert "another teacher" not in caplog.text
    make(teacher="bm25", teacher_scale=2.0).load_state_dict(state)
    make(teacher=None).load_state_dict(state)
    make(teacher=None).load_state_dict({})  # of an earlier version
    assert [message.partition("run: ")[2] for message in caplog.messages if "another teacher" in message] == [
        "data.teacher_scale [2.0] (was None).",
        "data.teacher [] (was ['bm25']).",
    ]


def test_vectors_are_kept_in_memory_where_the_cache_cannot_be_written(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        vectors = add(blocked / "folder", ["one"])
    assert "A teacher's vectors are kept in memory" in caplog.text
    assert vectors.gather(vectors.rows(hashes(["one"]))).tolist() == encode(["one"]).tolist()


def test_vectors_that_are_not_finite_are_refused(tmp_path):
    for value in (math.nan, 1e6):
        with pytest.raises(UserError, match="a vector is not finite"):
            add(tmp_path, ["one"], lambda texts, value=value: np.full((len(texts), 3), value, np.float32))
    assert open_vectors(tmp_path) == []


def test_the_cache_is_of_one_model_and_one_limit(make, tmp_path, monkeypatch):
    make()
    folders = {path.name for path in (tmp_path / "cache" / "teachers").iterdir()}
    make(teacher_max_tokens=4)
    assert len(list((tmp_path / "cache" / "teachers").iterdir())) == len(folders) + 1
    monkeypatch.setattr("splade_lit.teachers.kept_vectors.SentenceEncoder", refuse)
    first = next(iter(make().train_dataloader()))  # nothing is encoded again, nor with fewer pairs
    make(max_pairs=20)
    assert torch.equal(first.teacher_scores, next(iter(make().train_dataloader())).teacher_scores)


@pytest.mark.skipif(
    precision_on_cpu("bf16-mixed") != "bf16-mixed", reason="this CPU cannot multiply bf16 numbers; fit takes fp32"
)
def test_vectors_are_made_in_the_precision_of_the_run_and_kept_apart(world, teacher, tmp_path):
    cache = tmp_path / "cache"
    for precision in ("32-true", "bf16-mixed"):
        changes = {"data.teacher": str(teacher), "data.cache_dir": str(cache), "model.ranking": ["kl"]}
        changes |= {"trainer.precision": precision, "trainer.max_steps": 1, "trainer.callbacks": None}
        assert call(fit.main, "--config", world.config(tmp_path / precision, changes)).code == 0
    whole, half = sorted((cache / "teachers").iterdir(), key=lambda folder: len(folder.name))
    assert half.name == f"{whole.name}-bfloat16"
    parts = [open_vectors(folder / "document") for folder in (whole, half)]
    known = np.concatenate([hashed for hashed, _ in parts[0]])
    assert sorted(known) == sorted(np.concatenate([hashed for hashed, _ in parts[1]]))
    exact, rounded = (TextVectors(of_one).gather(TextVectors(of_one).rows(known)) for of_one in parts)
    assert 0 < np.abs(exact - rounded).max() < 0.02


def test_training_with_a_teacher_resumes_exactly(world, teacher, tmp_path):
    ranking = [
        "in_batch",
        "kl",
        {"class_path": "splade_lit.losses.distillation.MarginMSE", "init_args": {"weight": 0.1}},
    ]
    keep = {"every_n_train_steps": 3, "save_top_k": -1, "filename": "{step}"}
    changes = {
        "model.ranking": ranking,
        "data.teacher": str(teacher),
        "trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep}],
    }
    run = tmp_path / "run"
    outcome = call(fit.main, "--config", world.config(run, changes))
    assert outcome.code == 0, outcome.err
    table = rows(run)
    for row in table:
        values = {name.removeprefix("train/"): float(value) for name, value in row.items() if value}
        sum_of_parts = values["ranking_loss"] + values["kl_divergence"] + 0.1 * values["margin_mse"]
        expected = sum_of_parts + values["lambda_d"] * values["document_penalty"]
        assert values["loss"] == pytest.approx(expected, rel=1e-5)
    assert any(row["val/kl_divergence"] for row in table)
    card = (run / "model" / "README.md").read_text()
    assert "loss:SparseDistillKLDivLoss" in card
    assert "hofstaetter2020improving" in card
    again = tmp_path / "again"
    checkpoint = run / "checkpoints" / "step=3.ckpt"
    settings = ("--config", run / "config.yaml", "--trainer.default_root_dir", again, "--ckpt_path", checkpoint)
    resumed = call(fit.main, *settings)
    assert resumed.code == 0, resumed.err
    ours, expected = (load_checkpoint(path / "checkpoints" / "last.ckpt")["state_dict"] for path in (again, run))
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_what_a_run_with_a_teacher_lacks_is_said_before_it_starts(world, teacher, tmp_path):
    def refused(**changes: Any) -> str:
        config = world.config(tmp_path / "run", {name.replace("__", "."): value for name, value in changes.items()})
        outcome = call(fit.main, "--config", config)
        assert outcome.code == 2
        assert not (tmp_path / "run" / "metrics.csv").exists()
        return outcome.err

    assert "model.ranking has kl_divergence, which learns from a teacher, but the data have none" in refused(
        model__ranking=["kl"]
    )
    learning = {"model__ranking": ["kl"]}
    assert "no package 'no_such_package' is installed" in refused(**learning, data__teacher="package:no_such_package/m")
    assert "is a sparse encoder; a teacher whose vectors" in refused(**learning, data__teacher=str(world.base))
    assert "is not a folder" in refused(**learning, data__teacher=str(tmp_path / "nowhere"))
    learning["data__teacher"] = [str(teacher), "bm25"]
    assert "teacher_scale is -1" in refused(**learning, data__teacher_scale=-1.0)
    assert "teacher_scale is -2" in refused(**learning, data__teacher_scale=[1.0, -2.0])
    assert "teacher_scale has 3 factors for 2 teachers" in refused(**learning, data__teacher_scale=[1.0, 2.0, 3.0])


def test_the_kind_of_a_teacher_is_told_by_its_files(world, teacher, tmp_path):
    assert teacher_kind(teacher, "t") == "sentence encoder"
    assert teacher_kind(world.base, "t") == "sparse encoder"
    for number, (files, kind) in enumerate(
        [
            ({"config.json": {"architectures": ["BertForSequenceClassification"]}}, "cross-encoder"),
            ({"modules.json": [{"type": "sentence_transformers.models.Router"}]}, "sparse encoder"),
            ({"modules.json": [{"type": "Transformer"}, {"type": "Pooling"}]}, "sentence encoder"),
            (
                {
                    "modules.json": [{"type": "Transformer"}],
                    "config_sentence_transformers.json": {"model_type": "CrossEncoder"},
                },
                "cross-encoder",
            ),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
        assert teacher_kind(folder, "t") == kind
    (tmp_path / "0" / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(UserError, match=r"^t is no teacher by its files"):
        teacher_kind(tmp_path / "0", "t")


def write_scored(world, path: Path, scores: list[Any], several: bool = False) -> Path:
    """The pairs of the world with two negatives and scores, in one column of lists or in one a document."""
    lines = world.pairs.read_text().splitlines()[: len(scores)]
    rows = [json.loads(line) for line in lines]
    for row, numbers in zip(rows, scores, strict=True):
        row |= {f"score_{n}": number for n, number in enumerate(numbers)} if several else {"scores": numbers}
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".csv":
        lists = {} if several else {"scores": [json.dumps(row["scores"]) if row["scores"] else "" for row in rows]}
        pd.DataFrame(rows).assign(**lists).to_csv(path, index=False)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


NUMBERS = [[float(row), row / 2, -1.0] for row in range(12)]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("several", [False, True])
def test_scores_in_columns_are_those_of_a_rows_own_documents(world, make, tmp_path, caplog, ending, several):
    numbers = [[*row] for row in NUMBERS]
    numbers[3] = [3.0, None, -1.0]
    if not several:
        numbers[5] = None
    elif ending != "jsonl":
        numbers[5] = [None] * 3
    else:
        numbers[5] = [math.nan, None, math.nan]
    source = write_scored(world, tmp_path / f"scored.{ending}", numbers, several)
    columns = ["score_0", "score_1", "score_2"] if several else ["scores"]
    settings = {"source": str(source), "score_columns": columns, "teacher": None, "num_eval_pairs": 4}
    data = make(negative_columns=["negative_1", "negative_2"], **settings)
    assert data.has_teacher
    assert "1 of 12 pairs have scores of fewer than two documents" in caplog.text
    seen = []
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for positions, batch in zip(loader.sampler.batches(), loader, strict=True):
            chosen, size = loader.rows[positions], len(positions)
            expected = torch.full((size, 3 * size), torch.nan)
            for place, row in enumerate(chosen):
                own = numbers[row] or [None] * 3
                expected[place, place::size] = torch.tensor([math.nan if one is None else one for one in own])
            torch.testing.assert_close(batch.teacher_scores, expected, equal_nan=True)
            seen.extend(chosen.tolist())
    assert sorted(seen) == list(range(12))
    again = make(negative_columns=["negative_1", "negative_2"], max_pairs=6, **settings)  # from the cache
    np.testing.assert_array_equal(again._loaded().scores[:3], np.array(NUMBERS[:3], np.float32))


def test_scores_that_do_not_fit_the_rows_are_refused(world, make, tmp_path):
    def refused(match: str, numbers: list[Any], name: str = "scores", **settings: Any) -> None:
        source = write_scored(world, tmp_path / "scored.jsonl", numbers)
        columns = {"negative_columns": ["negative_1", "negative_2"], "score_columns": [name], "teacher": None}
        with pytest.raises(UserError, match=match):
            make(source=str(source), **columns | settings)

    refused(r"line 3: scores: 2 numbers where the row has 3 columns of documents", [*NUMBERS[:2], [1.0, 2.0]])
    refused(r"line 2: the column scores must hold numbers, .* but holds 'high'", [NUMBERS[0], [1.0, "high", 2.0]])
    refused(r"line 1: the column scores must hold numbers, .* but holds '\[1, None\]'", ["[1, None]"])
    refused(r"line 1: the column scores must hold numbers", [[True, 1.0, 1.0]])
    refused(r"line 1: the column scores must hold numbers", [[math.inf, 1.0, 1.0]])
    refused(r"no pair has scores of two documents", [[1.0, None, None], None, [None, None, 2.0], [3.0, None, None]] * 3)
    refused(r"no column score_9; its columns are query, answer, ", NUMBERS, name="score_9")
    refused(r"data\.teacher and data\.score_columns are two teachers", NUMBERS, teacher="x")


def test_training_on_scored_pairs(world, tmp_path):
    source = write_scored(world, tmp_path / "scored.jsonl", [[4.0, 2.0, None], None, [5.0, 1.0, 0.5]] * 16)
    changes = {
        "model.ranking": ["kl", "margin_mse"],
        "data.source": str(source),
        "data.negative_columns": ["negative_1", "negative_2"],
        "data.score_columns": ["scores"],
        "trainer.callbacks": None,
    }
    run = tmp_path / "run"
    outcome = call(fit.main, "--config", world.config(run, changes))
    assert outcome.code == 0, outcome.err
    table = rows(run)
    assert len(table) == 6
    assert all(float(row["train/margin_mse"]) > 0 for row in table)
    assert all(float(row["train/kl_divergence"]) > 0 for row in table)
