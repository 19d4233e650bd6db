"""Retrieval tasks: NanoBEIR and BEIR in every layout, the docstrings, and what is told about bad ones."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest

from splade_lit.core.errors import UserError
from splade_lit.data.docstrings import document_text, load_docstrings
from splade_lit.data.tasks import NANOBEIR_SPLITS, RetrievalTask, is_task, load_task, load_tasks

CORPUS = [
    {"_id": "d1", "title": "Rivers", "text": "They flow."},
    {"_id": "d2", "title": "", "text": "Songs\nare sung."},
    {"_id": "d3", "text": "No title here."},
    {"_id": "d4", "title": "A title alone", "text": ""},
]
QUERIES = [
    {"_id": "q1", "text": " what flows? "},
    {"_id": "q2", "text": "what is sung?"},
    {"_id": "q3", "text": "else?"},
]
QRELS = [("q1", "d1", 2), ("q1", "d2", 0), ("q2", "d2", 1), ("q2", "lost", 3), ("q3", "d3", 0)]


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def jsonl(rows: Sequence[object]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def write_qrels(folder: Path, rows: Sequence[tuple[object, ...]] = QRELS) -> None:
    lines = ["\t".join(map(str, row)) for row in [("query-id", "corpus-id", "score"), *rows]]
    write(folder / "qrels" / "test.tsv", "\n".join([*lines, ""]))


def write_beir(
    folder: Path, corpus: Sequence[object] = CORPUS, queries: Sequence[object] = QUERIES, gz: str = ""
) -> str:
    """A folder as BEIR's data sets are unpacked."""
    write(folder / f"corpus.jsonl{gz}", jsonl(corpus))
    write(folder / f"queries.jsonl{gz}", jsonl(queries))
    write_qrels(folder)
    return str(folder)


def write_nanobeir(folder: Path, sets: dict[str, dict[str, pd.DataFrame]]) -> str:
    """A folder as the Hub data set NanoBEIR-en is laid out: configurations corpus, queries and qrels, a split a set."""
    configs = []
    for config in ("corpus", "queries", "qrels"):
        files = []
        for name, frames in sets.items():
            if config in frames:
                (folder / config).mkdir(parents=True, exist_ok=True)
                frames[config].to_parquet(folder / config / f"{name}.parquet")
                files.append({"split": name, "path": f"{config}/{name}.parquet"})
        configs.append({"config_name": config, "data_files": files})
    write(folder / "README.md", f"---\nconfigs: {json.dumps(configs)}\n---\n# Sets\n")
    return str(folder)


def nano_frames(**frames: pd.DataFrame) -> dict[str, pd.DataFrame]:
    corpus = pd.DataFrame({"_id": ["d1", "d2", "d3"], "text": ["one", "two", ""]})
    queries = pd.DataFrame({"_id": ["q1", "q2"], "text": ["which is one?", "which is two?"]})
    qrels = pd.DataFrame({"query-id": ["q1", "q2", "q1"], "corpus-id": ["d1", "d2", "d2"]})
    return {"corpus": corpus, "queries": queries, "qrels": qrels} | frames


def test_nanobeir_sets_of_a_folder_are_those_in_its_files(shared_data: Path) -> None:
    folder = shared_data / "nanobeir-standin"
    tasks = load_tasks([str(folder)])
    assert [task.name for task in tasks] == ["NanoMSMARCO", "NanoNFCorpus", "NanoNQ"]
    for task in tasks:
        corpus, queries, qrels = (
            pd.read_parquet(folder / part / f"{task.name}.parquet") for part in ("corpus", "queries", "qrels")
        )
        assert task.corpus == dict(zip(corpus["_id"], corpus["text"], strict=True))
        assert task.queries == dict(zip(queries["_id"], queries["text"], strict=True))
        pairs = {(query, document) for query, relevant in task.qrels.items() for document in relevant}
        assert pairs == set(zip(qrels["query-id"], qrels["corpus-id"], strict=True))
        assert {grade for relevant in task.qrels.values() for grade in relevant.values()} == {1}
        assert not task.graded
        assert task.group == "NanoBEIR"


def test_nanobeir_by_name_from_a_folder(shared_data: Path) -> None:
    folder = str(shared_data / "nanobeir-standin")
    tasks = load_tasks(["nq", "MSMARCO"], nanobeir_source=folder)
    assert [task.name for task in tasks] == ["NanoNQ", "NanoMSMARCO"]
    assert tasks == [task for name in ("NanoNQ", "NanoMSMARCO") for task in load_task(folder) if task.name == name]


def test_the_names_are_those_of_the_peer() -> None:
    peer = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation.nano_beir")
    assert {name: f"Nano{split}" for name, split in peer.DATASET_NAME_TO_HUMAN_READABLE.items()} == NANOBEIR_SPLITS


def test_judgements_may_be_lists(tmp_path: Path) -> None:
    qrels = pd.DataFrame({"query-id": ["q1", "q2"], "corpus-id": [["d1", "d2"], ["d2"]]})
    write_nanobeir(tmp_path / "flat", {"NanoNQ": nano_frames()})
    write_nanobeir(tmp_path / "lists", {"NanoNQ": nano_frames(qrels=qrels)})
    (flat,), (lists,) = (load_task(str(tmp_path / name)) for name in ("flat", "lists"))
    assert lists == flat
    assert lists.qrels == {"q1": {"d1": 1, "d2": 1}, "q2": {"d2": 1}}


def test_ids_are_strings(tmp_path: Path) -> None:
    frames = nano_frames(
        corpus=pd.DataFrame({"_id": [10, 9], "text": ["one", "two"]}),
        queries=pd.DataFrame({"_id": [1, 2], "text": ["one?", "two?"]}),
    )
    for qrels in ({"query-id": [1, 2], "corpus-id": [10, 9]}, {"query-id": ["1", "2"], "corpus-id": [[10], [9]]}):
        folder = write_nanobeir(tmp_path, {"NanoNQ": {**frames, "qrels": pd.DataFrame(qrels)}})
        (task,) = load_task(folder)
        assert task.corpus == {"10": "one", "9": "two"}
        assert task.qrels == {"1": {"10": 1}, "2": {"9": 1}}


def test_empty_texts_and_queries_without_an_answer_are_left_out(tmp_path: Path) -> None:
    frames = nano_frames(
        corpus=pd.DataFrame({"_id": ["d1", "d2", "d3"], "text": ["one", "", None]}),
        queries=pd.DataFrame({"_id": ["q1", "q2", "q3", "q4"], "text": ["one?", "", None, "not judged?"]}),
        qrels=pd.DataFrame({"query-id": ["q1", "q2", "q3"], "corpus-id": ["d1", "d1", "d1"]}),
    )
    (task,) = load_task(write_nanobeir(tmp_path, {"NanoNQ": frames}))
    assert task.corpus == {"d1": "one"}
    assert task.queries == {"q1": "one?"}
    assert task.qrels == {"q1": {"d1": 1}}


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_beir_folder(tmp_path: Path, gz: str) -> None:
    (task,) = load_tasks([write_beir(tmp_path / "rivers", gz=gz)])
    assert task == RetrievalTask(
        name="rivers",
        # BEIR's rule: (title + " " + text).strip()
        corpus={"d1": "Rivers They flow.", "d2": "Songs\nare sung.", "d3": "No title here.", "d4": "A title alone"},
        queries={"q1": "what flows?", "q2": "what is sung?"},
        qrels={"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1, "lost": 3}},
        graded=True,
    )


def test_beir_folder_with_blanks(tmp_path: Path) -> None:
    corpus = [
        {"_id": 1, "title": None, "text": "one", "metadata": {"url": ""}},
        {"_id": "2", "text": None},
        {"_id": "3", "title": " ", "text": ""},
    ]
    folder = Path(write_beir(tmp_path, corpus, [{"_id": 7, "text": "one?"}, {"_id": 8, "text": None}]))
    write(folder / "corpus.jsonl", "\n" + jsonl(corpus) + "\n\n")
    write_qrels(folder, [(7, 1, 1), (8, 1, 1)])
    (task,) = load_task(str(folder))
    assert task.corpus == {"1": "one"}
    assert task.queries == {"7": "one?"}
    assert task.qrels == {"7": {"1": 1}}


def test_beir_folder_of_this_folder_and_of_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_beir(tmp_path / "rivers")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_task("~/rivers")[0].name == "rivers"
    assert is_task("~/rivers")
    monkeypatch.chdir(tmp_path / "rivers")
    assert load_task(".")[0].name == "rivers"


def test_real_beir_folders(shared_data: Path) -> None:
    nfcorpus, oracle = load_tasks([str(shared_data / "beir" / name) for name in ("nfcorpus", "nq-oracle/")])
    assert (nfcorpus.name, len(nfcorpus.corpus), len(nfcorpus.queries)) == ("nfcorpus", 3633, 323)
    assert (oracle.name, len(oracle.corpus), len(oracle.queries)) == ("nq-oracle", 9035, 2655)
    judged = pd.read_csv(shared_data / "beir" / "nfcorpus" / "qrels" / "test.tsv", sep="\t")
    assert sum(map(len, nfcorpus.qrels.values())) == len(judged)
    assert {grade for relevant in nfcorpus.qrels.values() for grade in relevant.values()} == set(judged["score"])
    with gzip.open(shared_data / "beir" / "nfcorpus" / "corpus.jsonl.gz", "rt") as lines:
        first = json.loads(next(lines))
    assert nfcorpus.corpus[first["_id"]] == f"{first['title']} {first['text']}"


def test_docstrings() -> None:
    (task,) = load_task("docstrings")
    docstrings = load_docstrings()
    assert task.name == "docstrings"
    assert len(task.queries) == len(docstrings.held_out) >= 300
    assert len(task.corpus) == len(docstrings.held_out) + len(docstrings.distractors) >= 2000
    answer = docstrings.held_out[3]
    assert task.queries[answer.name] == answer.first_sentence
    assert task.qrels[answer.name] == {answer.name: 1}
    assert task.corpus[answer.name] == document_text(answer)
    training = {document_text(docstring) for docstring in docstrings.train}
    assert training.isdisjoint(task.corpus.values())


def test_what_is_a_task(tmp_path: Path, shared_data: Path) -> None:
    assert all(is_task(name) for name in ("nq", "MSMARCO", "docstrings", write_beir(tmp_path, gz=".gz")))
    assert not any(is_task(name) for name in ("trec", "NanoNQ", str(shared_data / "nanobeir-standin"), "/"))


def test_tasks_of_one_name_are_refused(shared_data: Path) -> None:
    folder = str(shared_data / "nanobeir-standin")
    with pytest.raises(UserError, match="NanoNQ would be evaluated twice"):
        load_tasks([folder, "nq"], nanobeir_source=folder)


def broken_beir(folder: Path, file: str, content: str | bytes | None) -> str:
    """A BEIR folder in which one file is replaced, or missing."""
    write_beir(folder, gz=".gz" if file.endswith(".gz") else "")
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(folder)


def broken_nanobeir(folder: Path, **frames: pd.DataFrame) -> str:
    return write_nanobeir(folder, {"NanoNQ": nano_frames(**frames)})


def without_readme(folder: Path) -> str:
    broken_nanobeir(folder)
    (folder / "README.md").unlink()
    return str(folder)


def no_layout(folder: Path) -> str:
    write(folder / "corpus.jsonl", jsonl(CORPUS))
    return str(folder)


CUT = gzip.compress(jsonl(CORPUS * 1000).encode())[:-20]
FRAME = pd.DataFrame({"_id": ["1"]})
ONE_QREL = "query-id\tcorpus-id\tscore\n{}\n"
NO_ROWS = pd.DataFrame({"_id": [], "text": []}, dtype=str)
BAD_TASKS: dict[str, tuple[Callable[[Path], str], str]] = {
    "an unknown name": (
        lambda p: "trec",
        "'trec' is neither a folder nor a known task; known are climatefever, .*docstr",
    ),
    "no such folder": (lambda p: str(p / "none"), "is neither a folder nor a known task"),
    "neither layout": (lambda p: no_layout(p), r"neither a BEIR folder .* nor one in NanoBEIR's layout"),
    "a name without network": (lambda p: "scifact", "NanoBEIR-en: .* the Hugging Face Hub cannot be reached"),
    "no judgements": (
        lambda p: broken_beir(p, "qrels/test.tsv", None),
        r"no judgements of the split test in qrels/test.tsv",
    ),
    "empty judgements": (
        lambda p: broken_beir(p, "qrels/test.tsv", ""),
        "not judgements; give lines",
    ),
    "no header": (lambda p: broken_beir(p, "qrels/test.tsv", "q1\td1\t1\n"), r"not judgements; .*\(BEIR\).*\(TREC\)"),
    "no number": (
        lambda p: broken_beir(p, "qrels/test.tsv", ONE_QREL.format("q1\td1\tyes")),
        "line 2: the score is not",
    ),
    "a short line": (lambda p: broken_beir(p, "qrels/test.tsv", ONE_QREL.format("q1\td1")), "line 2: the score is not"),
    "other queries": (
        lambda p: broken_beir(p, "qrels/test.tsv", ONE_QREL.format("q9\td1\t1")),
        "no judgement names a query",
    ),
    "only zeros": (lambda p: broken_beir(p, "qrels/test.tsv", ONE_QREL.format("q1\td1\t0")), "no query has both"),
    "judgements not UTF-8": (
        lambda p: broken_beir(p, "qrels/test.tsv", b"\xff\xfe"),
        "test.tsv: the text is UTF-16",
    ),
    "an empty corpus": (lambda p: broken_beir(p, "corpus.jsonl", "\n"), r"corpus\.jsonl: the data set has no rows"),
    "a corpus of empty texts": (
        lambda p: write_beir(p, [{"_id": "1", "text": " "}]),
        "the corpus has no document with",
    ),
    "half a line": (
        lambda p: broken_beir(p, "corpus.jsonl", jsonl(CORPUS) + '{"_id'),
        "corpus.jsonl, line 5: not a JSON",
    ),
    "no id": (lambda p: broken_beir(p, "corpus.jsonl", '{"text": "a"}\n'), "no column _id; its columns are text"),
    "no text": (
        lambda p: broken_beir(p, "queries.jsonl", '{"_id": "a"}\n'),
        "no column text; its columns are _id",
    ),
    "a list": (lambda p: broken_beir(p, "queries.jsonl", '["a"]\n'), "queries.jsonl, line 1: not a JSON object"),
    "not gzip": (
        lambda p: broken_beir(p, "corpus.jsonl.gz", "words"),
        "corpus.jsonl.gz: cannot be read: Not a gzipped",
    ),
    "half a gzip": (
        lambda p: broken_beir(p, "corpus.jsonl.gz", CUT),
        "corpus.jsonl.gz: cannot be read: Compressed file",
    ),
    "no README": (without_readme, "needs a README.md whose head names its configurations"),
    "no text column": (
        lambda p: broken_nanobeir(p, queries=FRAME),
        "NanoNQ.parquet: no column text; .* are _id",
    ),
    "numbers as text": (
        lambda p: broken_nanobeir(p, corpus=FRAME.assign(text=1)),
        "text must hold text, .* holds a value of type int",
    ),
    "no id column": (lambda p: broken_nanobeir(p, corpus=FRAME.rename(columns={"_id": "text"})), "no column _id"),
    "no judgement column": (
        lambda p: broken_nanobeir(p, qrels=FRAME),
        "no column query-id, corpus-id; its columns are _id",
    ),
    "no documents": (lambda p: broken_nanobeir(p, corpus=NO_ROWS), "corpus has no document with text"),
    "only empty documents": (
        lambda p: broken_nanobeir(p, corpus=FRAME.assign(text="")),
        "corpus has no document with text",
    ),
}


@pytest.mark.parametrize("kind", BAD_TASKS)
def test_bad_tasks_are_told_in_one_sentence(tmp_path: Path, kind: str) -> None:
    make, message = BAD_TASKS[kind]
    with pytest.raises(UserError, match=message) as error:
        load_tasks([make(tmp_path / "task")])
    assert "\n" not in str(error.value)


def test_a_set_that_a_folder_lacks(shared_data: Path) -> None:
    with pytest.raises(UserError, match=r'Unknown split "NanoSciFact". Should be one of .*NanoMSMARCO'):
        load_tasks(["scifact"], nanobeir_source=str(shared_data / "nanobeir-standin"))
    with pytest.raises(UserError, match="there is no such file or folder"):
        load_tasks(["scifact"], nanobeir_source="./no/such/folder")


def test_a_set_that_lacks_a_part(tmp_path: Path) -> None:
    frames = nano_frames()
    folder = write_nanobeir(tmp_path, {"NanoNQ": frames, "NanoFEVER": {"corpus": frames["corpus"]}})
    with pytest.raises(UserError, match='Unknown split "NanoFEVER"'):
        load_tasks([folder])
