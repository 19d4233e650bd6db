"""An exact index after changes: texts, figures, files that are left, documents that go away."""

import errno
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from test_engines import VOCAB, vectors

from splade_lit.core.errors import UserError
from splade_lit.engines import exact as exact_module
from splade_lit.engines import segments as segments_module
from splade_lit.engines.exact import ExactIndex
from splade_lit.engines.index import Hit
from splade_lit.engines.qdrant import QdrantIndex
from splade_lit.engines.ties import settled

IDS = ["a", "b", "c"]


def build(folder: Path) -> tuple[ExactIndex, csr_array]:
    documents = vectors(3, 1)
    return ExactIndex.build(folder, lambda: [(IDS, documents, None)], VOCAB), documents


@pytest.mark.parametrize("with_texts", [{0}, {1}, {2}, {0, 2}])
def test_documents_without_a_text_get_an_empty_one_where_others_have_some(tmp_path, with_texts):
    documents = vectors(6, 1)
    ids = list("abcdef")
    parts = [
        (ids[row : row + 2], documents[row : row + 2], [f"of {id}" for id in ids[row : row + 2]])
        if row // 2 in with_texts
        else (ids[row : row + 2], documents[row : row + 2], None)
        for row in (0, 2, 4)
    ]
    made = ExactIndex.build(tmp_path / "index", lambda: parts, VOCAB)
    assert [made.text(id) for id in ids] == [f"of {id}" if row // 2 in with_texts else "" for row, id in enumerate(ids)]


def test_postings_of_deleted_documents_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(segments_module, "_BLOCK", 4)
    made, documents = build(tmp_path / "index")
    assert made.stats().num_postings == documents.nnz
    assert made.delete(["b", "b"]) == 1
    assert made.stats().num_postings == documents[[0, 2]].nnz


def test_what_was_left_is_removed_before_there_is_more(tmp_path, monkeypatch):
    made, documents = build(tmp_path / "index")
    write_segment = exact_module.write_segment

    def full(folder: Path, *arguments: object) -> None:
        write_segment(folder, *arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    there = []
    for change in (
        lambda: made.add(["d"], documents[[0]]),
        lambda: ExactIndex.build(made.folder, lambda: [(IDS, documents, None)], VOCAB),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(exact_module, "write_segment", full)
            for _ in range(3):
                with pytest.raises(UserError, match="No space left"):
                    change()
                there.append(len([path for path in made.folder.iterdir() if not path.name.startswith(".")]))
    assert there == [3] * 6  # index.json, the index, and what the last one has left
    made.add(["d"], documents[[0]])
    assert made.stats().num_documents == 4


def test_segments_are_joined_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(exact_module, "_MOST_SEGMENTS", 2)
    made, documents = build(tmp_path / "index")
    made.add(["d"], documents[[0]], ["text"])
    queries = vectors(4, 5)
    held, most = 0, []

    class Counted(segments_module.Segment):
        def left(self):
            nonlocal held
            held += 1
            most.append(held)
            try:
                return super().left()
            finally:
                held -= 1

    monkeypatch.setattr(exact_module, "Segment", Counted)
    made.add(["e"], documents[[1]])
    assert len(made.segments) == 1
    assert len(most) == 6  # each of three is read twice
    rows = csr_array(np.concatenate([documents.toarray(), documents.toarray()[:2]]))
    other = ExactIndex.build(tmp_path / "other", lambda: [([*IDS, "d", "e"], rows, None)], VOCAB)
    assert made.search(queries, 9) == other.search(queries, 9)
    assert [made.text(id) for id in "ade"] == ["", "text", ""]


def test_a_document_that_is_deleted_between_two_questions_is_no_hit():
    hits = [Hit("a", 1.0), Hit("b", 1.0), Hit("c", 0.5)]
    assert settled(lambda limit: hits, lambda ids: {"a": 1.0}, 3) == [Hit("a", 1.0), Hit("c", 0.5)]


def test_long_texts_go_to_qdrant_in_requests_of_some_megabytes(monkeypatch):
    made = QdrantIndex.in_memory(lambda: [], VOCAB)
    sizes = []
    upsert = made._points.upsert
    monkeypatch.setattr(made._points, "upsert", lambda batch: (sizes.append(len(batch)), upsert(batch)))
    ids = [f"d{row}" for row in range(260)]
    made.add(ids, vectors(260, 1), ["x" * 1_500_000 if row < 3 else "short" for row in range(260)])
    assert sizes == [1, 1, 256, 2]
    assert made.stats().num_documents == 260
    assert made.delete(["d1", "d1"]) == 1
