"""Test collections by folder and by id of ir_datasets: as tasks, as pairs, and what is told about bad ones."""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ir_measures
import numpy as np
import pytest
from command_runs import call

from splade_lit import init
from splade_lit.core.errors import UserError
from splade_lit.data.collection import open_folder, read_queries, splits_of, stored_lookup
from splade_lit.data.corpus import load_corpus, open_corpus
from splade_lit.data.datamodule import PairsDataModule
from splade_lit.data.pairs import load_pairs
from splade_lit.data.tasks import is_task, load_task
from splade_lit.evaluation.bm25 import bm25_result
from splade_lit.evaluation.task_evaluation import with_measures

ir_datasets = pytest.importorskip("ir_datasets")

TEXTS = {"10": "rivers flow to the sea", "9": "songs are sung", "8": 'a "quoted" film', "7": "blood in the heart"}
QUERIES = {"1": "what flows", "2": "what is sung", "3": "which film"}
QRELS = [("1", "10", 2), ("1", "9", 0), ("2", "9", 1), ("3", "8", 1), ("3", "lost", 1), ("4", "7", 1)]
TRIPLES = [("1", "10", "9"), ("2", "9", "8"), ("2", "9", "gone"), ("3", "8", "7")]
# Lines of a query need not follow each other; the judged document is not among those of query 2.
SCORES = [("1", "8", 3.0), ("2", "7", 1.0), ("1", "9", 4.0), ("3", "8", 9.0), ("1", "10", 5.0), ("2", "8", 2.0)]
SCORES += [("2", "10", 0.5), ("1", "7", 0.5)]
TOPICS = """
<top>
<num> Number: 1
<title> what
flows
<desc> Description:
All about <i>rivers</i>.
</top>

<top>
<num> Number: 2 </num>
<title> Topic: what is sung </title>
</top>
<top><num>3</num><title>which film &amp; why</title></top>
"""


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def tsv(rows: Any) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def trec(rows: Any, space: str = " ") -> str:
    return "".join(f"{query}{space}0{space}{document}{space}{grade}\n" for query, document, grade in rows)


@pytest.fixture
def msmarco(tmp_path: Path) -> Path:
    """A folder with MS MARCO's names of files."""
    folder = tmp_path / "msmarco"
    write(folder / "collection.tsv.gz", tsv(TEXTS.items()))
    write(folder / "queries.train.tsv", tsv(QUERIES.items()))
    write(folder / "queries.dev.small.tsv", tsv(list(QUERIES.items())[:2]))
    write(folder / "qrels.train.tsv", trec(QRELS, "\t"))
    write(folder / "qrels.dev.small.tsv", trec(QRELS[:3], "\t"))
    write(folder / "qidpidtriples.train.full.2.tsv.gz", tsv(TRIPLES))
    texts = [(QUERIES[q], TEXTS[p], TEXTS[n]) for q, p, n in TRIPLES if n in TEXTS]
    write(folder / "triples.dev.small.tsv", tsv(texts))
    return folder


def beir(folder: Path, splits: tuple[str, ...] = ("train", "dev", "test")) -> Path:
    rows = [{"_id": id, "title": f"T{id}", "text": text} for id, text in TEXTS.items()]
    write(folder / "corpus.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"_id": id, "text": text} for id, text in QUERIES.items()]
    write(folder / "queries.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for split in splits:
        write(folder / "qrels" / f"{split}.tsv", tsv([("query-id", "corpus-id", "score"), *QRELS]))
    return folder


def rows(**settings: Any) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in load_pairs(**settings).dataset]


def test_ms_marcos_files_are_tasks_and_pairs(msmarco: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert splits_of(msmarco) == ["dev.small", "train"]
    (task,) = load_task(f"{msmarco}:dev.small")
    assert (task.name, task.graded, task.corpus) == ("msmarco-dev.small", True, TEXTS)
    assert task.queries == {"1": "what flows", "2": "what is sung"}
    assert task.qrels == {"1": {"10": 2, "9": 0}, "2": {"9": 1}}
    expected = [("what flows", TEXTS["10"]), ("what is sung", TEXTS["9"]), ("which film", TEXTS["8"])]
    assert rows(source=str(msmarco)) == expected
    assert rows(source=f"{msmarco}:train", min_grade=2) == expected[:1]
    assert "1 of 5 pairs name a query that is not there" in caplog.text
    assert "1 of 5 pairs name a document that is not there" in caplog.text
    caplog.clear()
    assert rows(source=str(msmarco)) == expected  # from the cache, with the same words
    assert "1 of 5 pairs name a document" in caplog.text


def test_triples_by_id_and_by_text(msmarco: Path) -> None:
    columns = {"negative_columns": ["negative_1"], "config": "triples"}
    by_id = rows(source=str(msmarco), **columns)
    assert by_id == [(QUERIES[q], TEXTS[p], TEXTS[n]) for q, p, n in TRIPLES if n in TEXTS]
    assert rows(source=str(msmarco), max_pairs=2, **columns) == by_id[:2]
    assert rows(source=str(msmarco / "triples.dev.small.tsv"), **columns) == by_id
    assert rows(source=f"{msmarco}:dev.small", **columns) == by_id
    assert rows(source=str(msmarco), split="dev", **columns) == by_id


def test_treces_topics_and_judgements(tmp_path: Path) -> None:
    folder = tmp_path / "robust"
    write(folder / "corpus.jsonl", "".join(json.dumps({"_id": id, "text": text}) + "\n" for id, text in TEXTS.items()))
    write(folder / "topics.robust04.txt", TOPICS.replace("which film", "which film < 3 hours A<B"))
    write(folder / "qrels.robust04.txt", trec(QRELS[:4]))
    (task,) = load_task(str(folder))  # the one split that there is
    assert task.name == "robust-robust04"
    assert task.queries == {"1": "what flows", "2": "what is sung", "3": "which film < 3 hours A<B & why"}
    assert task.qrels["1"] == {"10": 2, "9": 0}
    assert rows(source=str(folder), split="robust04")[0] == ("what flows", TEXTS["10"])
    assert is_task(f"{folder}:robust04")


def test_topics_in_xml(tmp_path: Path) -> None:
    """As TREC-COVID has them, and the tracks whose topic is the text itself."""
    path = write(
        tmp_path / "topics.xml.gz",
        """<?xml version="1.0" encoding="UTF-8"?>
<topics task="COVIDSearch 2020" batch="5">
  <topic number="1">
    <query>coronavirus  origin</query>
    <question>what is the origin of COVID-19</question>
  </topic>
  <topic number="2"><description>of it</description><title>fever &amp; cough &lt; 3 days</title></topic>
  <topic number="3">Patient is a
    45-year-old man</topic>
</topics>
""",
    )
    found = {"1": "coronavirus origin", "2": "fever & cough < 3 days", "3": "Patient is a 45-year-old man"}
    assert dict(read_queries(path)) == found
    folder = beir(tmp_path / "covid")
    (folder / "queries.jsonl").unlink()
    path.rename(folder / path.name)
    assert dict(open_folder(folder, "test").queries()) == found


def test_beirs_splits_are_pairs_and_tasks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = beir(tmp_path / "rivers")
    assert load_task(str(folder))[0].name == "rivers"
    assert load_task(f"{folder}:dev")[0].name == "rivers-dev"
    assert rows(source=str(folder))[:2] == [("what flows", f"T10 {TEXTS['10']}"), ("what is sung", f"T9 {TEXTS['9']}")]
    assert rows(source=str(folder), split="dev") == rows(source=f"{folder}:dev") == rows(source=str(folder))


def test_training_on_half_of_the_judged_queries(shared_data: Path, tmp_path: Path) -> None:
    """What docs/collections.md shows for a collection that has one file of judgements."""
    folder = tmp_path / "cranfield"
    (folder / "qrels").mkdir(parents=True)
    source = shared_data / "beir" / "cranfield"
    for name in ("corpus.jsonl.gz", "queries.jsonl.gz"):
        (folder / name).symlink_to(source / name)
    header, *lines = (source / "qrels" / "test.tsv").read_text().splitlines(keepends=True)
    for number, name in enumerate(("odd", "even")):
        kept = [line for line in lines if int(line.split("\t")[0]) % 2 != number]
        (folder / "qrels" / f"{name}.tsv").write_text(header + "".join(kept))
    odd, even = (load_task(f"{folder}:{name}")[0] for name in ("odd", "even"))
    assert odd.queries.keys().isdisjoint(even.queries)
    pairs = load_pairs(f"{folder}:odd")
    relevant = sum(grade > 0 for grades in odd.qrels.values() for id, grade in grades.items() if id in odd.corpus)
    assert len(pairs) == relevant
    assert {row["query"] for row in pairs.dataset} <= set(odd.queries.values())
    queries, qrels = folder / "queries.jsonl.gz", folder / "qrels" / "even.tsv"
    given = ["--pairs", f"{folder}:odd", "--corpus", folder, "--queries", queries, "--qrels", qrels, "--no-timing"]
    outcome = call(init.main, tmp_path / "half.yaml", *given)
    assert outcome.code == 0, outcome.err
    assert f"pairs      {folder}:odd: {len(pairs) + 1} rows" in outcome.out
    assert "1 with an empty text (skipped)" in outcome.out
    assert "0 pairs have a held-out query" in outcome.out
    assert load_task(str(tmp_path / "half-heldout"))[0].queries == even.queries


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("collection.tsv", "1\ta\tb\n", "line 1: 3 columns where there must be 2: _id, text"),
        ("collection.tsv", "1\ta\n1\tb\n", "the _id '1' is also that of"),
        ("queries.train.tsv", "1\n", "line 1: 1 columns where there must be 2"),
        ("queries.train.tsv", "<xml><topic/></xml>", "no topics; give TREC's form"),
        (
            "queries.train.tsv",
            '<t><topic number="1"><query/></topic></t>',
            "topic 1: a topic needs a number and a <title>",
        ),
        ("queries.train.tsv", '<t><topic number="1"><query>a</topic></t>', "is no XML: mismatched tag"),
        ("queries.train.tsv", '<!DOCTYPE t [<!ENTITY a "b">]><t><topic number="1">&a;</topic></t>', "has a DOCTYPE"),
        ("queries.train.tsv", "<top><num>1<desc>a</top>", "topic 1: a topic needs a <num> and a <title>"),
        ("queries.train.tsv", "<top><num>1<title>a</top><top><num>1<title>b</top>", "two topics have the number 1"),
        ("qrels.train.tsv", "1\t0\t10\tyes\n", "line 1: the score is not a whole number"),
        ("qrels.train.tsv", "1\t0\t10\t0\n", "no grade reaches data.min_grade 1; the highest is 0"),
        ("qrels.train.tsv", "5\t0\t10\t1\n", "no pair is left; of its pairs 1 name no query and 0 no document"),
    ],
)
def test_damaged_files_are_told(msmarco: Path, name: str, content: str, says: str) -> None:
    (msmarco / "collection.tsv.gz").rename(msmarco / "kept.gz")
    (msmarco / "collection.tsv").write_bytes(gzip.decompress((msmarco / "kept.gz").read_bytes()))
    write(msmarco / name, content)
    with pytest.raises(UserError, match=says) as error:
        load_pairs(str(msmarco))
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_told(msmarco: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no judgements of the split test .*msmarco:dev.small, .*msmarco:train"):
        load_task(str(msmarco))
    with pytest.raises(UserError, match=r"no judgements of the split eval .*msmarco:dev.small, .*msmarco:train"):
        load_pairs(str(msmarco), split="eval")
    with pytest.raises(UserError, match=r"no pairs of the kind scoreddocs .* it has qrels, triples"):
        load_pairs(str(msmarco), config="scoreddocs")
    write(msmarco / "qidpidtriples.train.small.2.tsv", tsv(TRIPLES))
    with pytest.raises(
        UserError, match=r"several files of triples; set data.split to one of train.full.2, train.small.2"
    ):
        load_pairs(str(msmarco), config="triples", negative_columns=["negative_1"])
    (msmarco / "queries.train.tsv").unlink()
    with pytest.raises(UserError, match=r"no queries.train.tsv, .*queries.jsonl, .* there"):
        load_pairs(str(msmarco))


def test_a_corpus_is_read_without_its_judgements(msmarco: Path) -> None:
    assert load_corpus(str(msmarco)) == TEXTS
    assert open_corpus(str(msmarco)).num_rows == 4


def test_texts_are_looked_up_on_disk(msmarco: Path) -> None:
    from splade_lit.data.collection import id_texts

    lookup = stored_lookup(id_texts(msmarco / "collection.tsv.gz").read(["_id", "text"], id_column=True))
    assert lookup(["9", "none", "9", "7"]) == {"9": TEXTS["9"], "7": TEXTS["7"]}
    assert lookup(["none"]) == {}


class Doc(NamedTuple):
    doc_id: str
    title: str
    text: str


class ScoredDoc(NamedTuple):
    query_id: str
    doc_id: str
    score: float


class Scored(ir_datasets.formats.BaseScoredDocs):
    def scoreddocs_iter(self) -> Iterator[ScoredDoc]:
        return (ScoredDoc(*row) for row in SCORES)

    def scoreddocs_cls(self) -> type[ScoredDoc]:
        return ScoredDoc


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[str]:
    """A set of local files with all that there can be, registered with the library."""
    formats, local = ir_datasets.formats, ir_datasets.util.LocalDownload
    folder = tmp_path / "irds"
    docs = write(folder / "docs.tsv", tsv((id, f"T{id}", text) for id, text in TEXTS.items()))
    queries = write(folder / "queries.tsv", tsv(QUERIES.items()))
    qrels = write(folder / "qrels.txt", trec(QRELS))
    triples = write(folder / "pairs.tsv", tsv(TRIPLES))
    id = f"small/{tmp_path.name}"
    dataset = ir_datasets.Dataset(
        formats.TsvDocs(local(docs), Doc),
        formats.TsvQueries(local(queries)),
        formats.TrecQrels(local(qrels), {}),
        formats.TsvDocPairs(local(triples)),
        Scored(),
    )
    ir_datasets.registry.register(id, dataset)
    yield id
    del ir_datasets.registry._registered[id]


def test_a_registered_set_is_a_task(registered: str) -> None:
    (task,) = load_task(f"irds:{registered}")
    assert task.name == registered.replace("/", "-")
    assert task.corpus == {id: f"T{id} {text}" for id, text in TEXTS.items()}
    assert task.queries == QUERIES
    assert task.qrels["3"] == {"8": 1, "lost": 1}
    assert is_task(f"irds:{registered}")
    assert load_corpus(f"irds:{registered}") == task.corpus


def test_a_registered_set_gives_pairs_triples_and_scored_documents(
    registered: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = f"irds:{registered}"
    titled = {id: f"T{id} {text}" for id, text in TEXTS.items()}
    assert rows(source=source) == [(QUERIES[q], titled[d]) for q, d in (("1", "10"), ("2", "9"), ("3", "8"))]
    assert "1 of 5 pairs name a document that is not there" in caplog.text
    triples = rows(source=source, config="docpairs", negative_columns=["negative_1"])
    assert triples == [(QUERIES[q], titled[p], titled[n]) for q, p, n in TRIPLES if n in TEXTS]
    negatives = ["negative_1", "negative_2"]
    scored = load_pairs(source, config="scoreddocs", negative_columns=negatives, score_columns=["scores"])
    expected = [("1", "10", "9", "8"), ("2", "9", "8", "7")]
    assert rows(source=source, config="scoreddocs", negative_columns=negatives) == [
        (QUERIES[query], *(titled[id] for id in ids)) for query, *ids in expected
    ]
    assert "1 of 3 queries have no relevant document or fewer than 2 others that are scored" in caplog.text
    np.testing.assert_array_equal(scored.scores, [[5, 4, 3], [np.nan, 2, 1]])
    assert "1 of 2 pairs have an answer without a score" in caplog.text
    caplog.clear()
    assert len(rows(source=source, config="scoreddocs", negative_columns=negatives, max_pairs=1)) == 1
    assert "1 of 3 queries have no relevant document or fewer than 2 others that are scored" in caplog.text


def test_candidates_without_scores(registered: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    source = f"irds:{registered}"
    monkeypatch.setattr(f"{__name__}.SCORES", [(query, id, 0.0) for query, id, _ in SCORES])
    pairs = load_pairs(source, config="scoreddocs", negative_columns=["negative_1"])
    assert [row["negative_1"].split()[0] for row in pairs.dataset] == ["T8", "T7"]
    assert "its documents have no scores" in caplog.text
    with pytest.raises(UserError, match="no column scores"):
        load_pairs(source, config="scoreddocs", negative_columns=["negative_1"], score_columns=["scores"])


def test_figures_of_a_registered_set_are_the_libraries_own(shared_data: Path, tmp_path: Path) -> None:
    """Cranfield in files of ir_datasets: the task's figures against ir_measures on the library's own judgements."""
    source = shared_data / "beir" / "cranfield"
    docs, queries = tmp_path / "docs.tsv", tmp_path / "queries.tsv"
    for name, path in (("corpus", docs), ("queries", queries)):
        with gzip.open(source / f"{name}.jsonl.gz", "rt") as file:
            records = [json.loads(line) for line in file]
        texts = [
            (one["_id"], f"{one.get('title', '')} {one['text']}".replace("\n", " ").replace("\t", " ").strip())
            for one in records
        ]
        write(path, tsv(texts))
    lines = (source / "qrels" / "test.tsv").read_text().splitlines()[1:]
    qrels = write(tmp_path / "qrels.txt", trec(line.split("\t") for line in lines))
    dataset = ir_datasets.create_dataset(str(docs), str(queries), str(qrels))
    ir_datasets.registry.register("local/cranfield", dataset)
    names = ["nDCG@10", "RR@10", "R@100", "R@1000", "P@5", "AP(rel=2)@100"]
    try:
        (task,) = with_measures(load_task("irds:local/cranfield"), names)
    finally:
        del ir_datasets.registry._registered["local/cranfield"]
    result = bm25_result(task)
    measures = [ir_measures.parse_measure(name) for name in names]
    theirs = ir_measures.calc_aggregate(measures, dataset.qrels, result.run)
    assert {name: result.metrics[name] for name in names} == pytest.approx(
        {str(measure): value for measure, value in theirs.items()}, abs=1e-9
    )
    assert 0.3 < result.metrics["nDCG@10"] < 0.5


def test_ids_that_cannot_be_had_are_told(registered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"knows no set 'beir/nfcorpus/tst'; did you mean .*beir/nfcorpus/test"):
        load_task("irds:beir/nfcorpus/tst")
    with pytest.raises(UserError, match=r"has no judgements, which a retrieval task needs"):
        load_task("irds:beir/nfcorpus")
    with pytest.raises(UserError, match=r"no pairs of the kind docpairs \(data.config\); it has qrels"):
        load_pairs("irds:beir/nfcorpus/test", config="docpairs")
    with pytest.raises(UserError, match="knows no set 'nope'"):
        PairsDataModule("not loaded", source="irds:nope")
    with pytest.raises(UserError, match="no pairs of the kind triples"):
        PairsDataModule("not loaded", source=f"irds:{registered}", config="triples")
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(UserError, match=r"needs ir_datasets; run `pip install -c constraints\.txt -e "):
        load_task(f"irds:{registered}")


def test_files_that_cannot_be_had_are_told(tmp_path: Path) -> None:
    dataset = ir_datasets.create_dataset(str(tmp_path / "none.tsv"), str(tmp_path / "none.tsv"), str(tmp_path / "none"))
    ir_datasets.registry.register("local/none", dataset)
    try:
        with pytest.raises(UserError, match=r"irds:local/none cannot be read \(FileNotFoundError: .*none.*\); connect"):
            load_task("irds:local/none")
    finally:
        del ir_datasets.registry._registered["local/none"]
