"""Which documents of a batch answer which query: against a search by hand, and as training sees them."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lightning.pytorch.callbacks import ModelCheckpoint
from recorded_runs import Recorder
from recorded_runs import fit as record
from tiny_runs import make_data, make_trainer, save_base

from splade_lit.core.errors import UserError
from splade_lit.core.tokenisation import tokenize_documents
from splade_lit.data.answers import NO_TEXT, KnownAnswers
from splade_lit.data.datamodule import PairsDataModule
from splade_lit.losses.ranking import in_batch_ranking_loss
from splade_lit.training.module import SpladeModule

ROWS = [
    {"query": "who wrote it", "answer": "the author", "also": "a writer", "wrong": "the river", "worse": "the king"},
    {"query": "who wrote it", "answer": "the queen", "also": None, "wrong": None, "worse": "a city"},
    {"query": "what is water", "answer": "a cell", "also": "", "wrong": "the queen", "worse": None},
    {"query": "what is a cell", "answer": "the protein", "also": "the blood", "wrong": "the author", "worse": "a song"},
    {"query": "who was first", "answer": "the player", "also": None, "wrong": "a game", "worse": "a team"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@settings(deadline=None, max_examples=200)
@given(
    texts=arrays(np.uint64, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=st.integers(0, 6)),
    num_positives=st.integers(1, 4),
    data=st.data(),
)
def test_answers_by_hand(texts: np.ndarray, num_positives: int, data: st.DataObject) -> None:
    num_positives = min(num_positives, texts.shape[1])
    texts[:, 0] += 1  # the first answer is always there
    queries = data.draw(arrays(np.uint64, len(texts), elements=st.integers(1, 4)))
    answers = KnownAnswers(np.column_stack([queries, texts]), num_positives)
    known = {(q, d) for q, row in zip(queries, texts, strict=True) for d in row[:num_positives] if d != NO_TEXT}
    rows = data.draw(arrays(np.int64, st.integers(0, 6), elements=st.integers(0, len(texts) - 1)))
    documents = [text for column in texts[rows].T for text in column if text != NO_TEXT]
    expected = [[i, j] for i, row in enumerate(rows) for j, d in enumerate(documents) if (queries[row], d) in known]
    assert answers.among(rows).tolist() == expected
    for i, row in enumerate(answers.places(rows)):
        assert [documents[place] if place >= 0 else NO_TEXT for place in row] == texts[rows[i]].tolist()
    assert answers.answers_per_query.tolist() == [len({d for q, d in known if q == one}) for one in np.unique(queries)]
    wrong = [(q, d) for q, row in zip(queries, texts, strict=True) for d in row[num_positives:] if d != NO_TEXT]
    assert answers.num_contradictions == sum(pair in known for pair in wrong)


@pytest.fixture
def data(tmp_path, tiny_tokenizer) -> PairsDataModule:
    """All rows but the second in one batch; the second tells another answer of the first's query."""
    source = write(tmp_path / "pairs.jsonl", ROWS)
    return make_data(tiny_tokenizer, source, ["wrong", "worse"], positive_columns=["also"])


def test_a_batch_holds_all_texts_that_there_are_and_knows_all_answers(data, tiny_tokenizer) -> None:
    data.setup()
    loader = data.train_dataloader()
    batch = loader.batch(np.array([0, 2, 3, 4]))
    texts = ["the author", "a cell", "the protein", "the player", "a writer", "the blood"]
    texts += ["the river", "the queen", "the author", "a game", "the king", "a song", "a team"]
    expected = tokenize_documents(tiny_tokenizer, texts, 512)
    assert [ids.tolist() for ids in batch.documents] == [ids.tolist() for ids in expected]
    # "the queen" answers the first query by the second row, and is a negative of the third row's.
    pairs = [(0, "the author"), (0, "a writer"), (0, "the queen"), (1, "a cell"), (2, "the protein"), (2, "the blood")]
    by_hand = [[i, j] for i, text in [*pairs, (3, "the player")] for j, one in enumerate(texts) if one == text]
    assert batch.answers.tolist() == sorted(by_hand)


def test_letter_case_and_white_space_make_no_other_text(tmp_path, tiny_tokenizer) -> None:
    rows = [
        {"query": "who wrote it?", "answer": "the author"},
        {"query": "Who  wrote it", "answer": "a writer"},
        {"query": "who sang it", "answer": "a singer"},
        {"query": "who sings", "answer": "a  singer "},
    ]
    data = make_data(tiny_tokenizer, write(tmp_path / "pairs.jsonl", rows))
    data.setup()
    answers = data.train_dataloader().batch(np.arange(4)).answers.tolist()
    assert answers == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2], [2, 3], [3, 2], [3, 3]]


def test_rows_without_a_text_go_together(tmp_path, tiny_tokenizer) -> None:
    """What is not there is no text that two rows share."""
    rows = [{"query": f"who {n}", "answer": f"song {n}", "also": None, "wrong": ""} for n in range(32)]
    data = make_data(tiny_tokenizer, write(tmp_path / "pairs.jsonl", rows), ["wrong"], positive_columns=["also"])
    data.setup()
    for batch in data.train_dataloader():
        assert len(batch.queries) == len(batch.documents) == 8
        assert batch.answers.tolist() == [[row, row] for row in range(8)]


def test_scores_of_a_teacher_stand_at_their_documents(tmp_path, tiny_tokenizer) -> None:
    scored = [{**row, "scores": [10.0 * n, 10 * n + 1, 10 * n + 2, None]} for n, row in enumerate(ROWS)]
    source = write(tmp_path / "pairs.jsonl", scored)
    settings = {"positive_columns": ["also"], "score_columns": ["scores"]}
    data = make_data(tiny_tokenizer, source, ["wrong", "worse"], **settings)
    data.setup()
    batch = data.train_dataloader().batch(np.array([0, 2, 3, 4]))
    assert batch.teacher_scores is not None
    found = [
        [(place, value) for place, value in enumerate(row) if value == value] for row in batch.teacher_scores.tolist()
    ]
    # Documents: four first positives, two further ones, four and three negatives.
    assert found == [
        [(0, 0.0), (4, 1.0), (6, 2.0)],
        [(1, 20.0), (7, 22.0)],
        [(2, 30.0), (5, 31.0), (8, 32.0)],
        [(3, 40.0), (9, 42.0)],
    ]


def test_what_is_in_the_data_is_told(tmp_path, tiny_tokenizer, caplog) -> None:
    rows = [*ROWS, {**ROWS[0], "answer": "a book", "also": None, "worse": "the queen"}]
    source = write(tmp_path / "pairs.jsonl", rows)
    data = make_data(tiny_tokenizer, source, ["wrong", "worse"], positive_columns=["also"])
    with caplog.at_level(logging.INFO, "splade_lit"):
        data.setup()
    told = [record.getMessage() for record in caplog.records]
    assert f"{source}: 2 of 4 queries have several answers, up to 4; none of them counts as a negative." in told
    assert f"{source}: 4 of 6 rows have no positive_2." in told
    assert f"{source}: 1 of 6 rows have no negative_1." in told
    wrong = f"{source}: 1 hard negatives are documents that answer their query elsewhere in the data; they count as "
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"{wrong}answers."]
    assert data.num_documents == 8
    frequencies = data.document_frequencies(len(tiny_tokenizer))
    assert frequencies[tiny_tokenizer.convert_tokens_to_ids("queen")] == 1
    assert frequencies[tiny_tokenizer.convert_tokens_to_ids("river")] == 0
    assert len(data.sample_documents(100, 0)) == 6


def test_the_loss_of_training_is_that_of_the_known_answers(data, tmp_path, tiny_tokenizer, make_masked_lm) -> None:
    base = save_base(tmp_path / "base", make_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer)
    module = SpladeModule(str(base), lambda_d=0.0)
    logged = []

    original = module.training_step

    def step(batch, batch_idx):
        with torch.no_grad():
            documents = module.encoder.document(batch.documents)
            scores = module.encoder.query.scores(batch.queries, documents)
            expected = in_batch_ranking_loss(scores, batch.answers)
        loss = original(batch, batch_idx)
        logged.append((float(loss.detach()), float(expected), len(batch.answers)))
        return loss

    module.training_step = step
    make_trainer(tmp_path, max_steps=3).fit(module, data)
    assert len(logged) == 3
    for loss, expected, _ in logged:
        assert loss == pytest.approx(expected, rel=1e-5)
    assert sum(answers for *_, answers in logged) > len(ROWS)


def test_several_positives_resume_exactly(tmp_path, tiny_tokenizer_dir) -> None:
    rows = [
        {
            "query": f"who {n % 9}",
            "answer": f"song {n}",
            "also": f"film {n % 4}" if n % 3 else None,
            "wrong": f"river {n % 7}" if n % 2 else "",
        }
        for n in range(40)
    ]
    source = write(tmp_path / "pairs.jsonl", rows)

    def make() -> PairsDataModule:
        settings = {"positive_columns": ["also"], "batch_size": 4}
        return make_data(tiny_tokenizer_dir, source, ["wrong"], **settings)

    kept = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole: Recorder = record(make(), tmp_path, callbacks=[kept], max_epochs=2)
    for step in (1, 5, len(whole.seen) // 2 + 1):
        resumed = record(make(), tmp_path, tmp_path / "kept" / f"step={step}.ckpt", max_epochs=2)
        assert resumed.seen == whole.seen[step:]


def test_columns_of_positives_are_checked(tmp_path, tiny_tokenizer) -> None:
    source = write(tmp_path / "pairs.jsonl", ROWS)
    with pytest.raises(UserError, match="no column more"):
        make_data(tiny_tokenizer, source, positive_columns=["more"]).setup()
    with pytest.raises(UserError, match="must be different ones"):
        make_data(tiny_tokenizer, source, positive_columns=["answer"]).setup()
