"""What was seen in one's own data, in lines for a person."""

import os
from pathlib import Path
from typing import Any

from splade_lit.own_data.columns import OwnPairs
from splade_lit.own_data.corpus_alone import MOST_SHARING, MadePairsFacts
from splade_lit.own_data.held_out import HeldOut
from splade_lit.own_data.inspection import CorpusFacts, Lengths, PairsFacts
from splade_lit.own_data.structure import Kind

# A warning comes with fewer pairs than this, with larger shares than these, and with a smaller share of answers found.
_FEW_PAIRS = 1_000
_COPIES = 0.1  # of pairs, or of documents
_UNKNOWN = 0.01  # of tokens
_CUT = 0.2  # of documents
_SEEN = 0.5  # of held-out queries
_FOUND = 0.9  # of answers
_SHORT = 0.3  # of documents that pairs are made of


_MADE = {
    Kind.TITLE: "from a title to its text",
    Kind.SENTENCE: "from the first sentence to the rest",
    Kind.HEADING: "from a heading to its section",
    Kind.SPAN: "from a few words to what stands around them",
}


def made_lines(facts: MadePairsFacts, source: str) -> list[str]:
    """What a corpus holds, and the pairs that were made of it."""
    num_worked = facts.num_documents - facts.num_empty - facts.num_copies
    lines = [
        f"corpus     {source}: {facts.num_documents:,} documents, {facts.num_empty:,} without text, "
        f"{facts.num_copies:,} copies of an earlier one {_worry(facts.num_copies > _COPIES * facts.num_documents)}",
        "pairs      none given; made of the structure of the documents:",
        *_kinds(facts),
        f"left out   {facts.num_short:,} documents too short for a pair; {facts.num_shared:,} pairs with a query that "
        f"more than {MOST_SHARING} have",
    ]
    if facts.num_not_drawn:
        lines.append(f"           {facts.num_not_drawn:,} of {num_worked:,} documents, for there are more than enough")
    return lines


def added_lines(facts: MadePairsFacts, num_left_out: int) -> list[str]:
    """The pairs that were made beside those that are given; so many of them are not trained on."""
    number = sum(facts.made.values())
    left_out = f"           {num_left_out:,} of them have a held-out query and are left out of training"
    return [
        f"added      {number:,} pairs made of the structure of the documents, as those given are few:",
        *_kinds(facts),
        *([left_out] if num_left_out else []),
    ]


def none_added_lines() -> list[str]:
    """That few pairs stay alone, for none that is made has their columns."""
    return ["added      none: pairs that are made would have no further answers and no hard negatives"]


def no_teacher_lines() -> list[str]:
    """That there is no teacher, and what follows."""
    return [
        "teacher    none: it takes English texts and sentence-transformers (the extra `teacher`); few pairs, or pairs",
        "           that are made, seldom lead above BM25 without one",
    ]


def made_test_lines(facts: MadePairsFacts) -> list[str]:
    """What figures on test queries that were made can tell, and what they cannot; nothing if there are none."""
    if not facts.tests:
        return []
    titles, sentences = (facts.tests.get(kind, 0) for kind in (Kind.TITLE, Kind.SENTENCE))
    return [
        f"           made of {titles:,} titles and {sentences:,} first sentences, which all documents of this task are",
        f"           without; the {facts.num_held_out:,} documents that they are from are not trained on",
        "known      whether training helps to find new documents by a title or a sentence of theirs, beside BM25",
        "not known  how people's queries fare: they are shorter, in other words, and about a detail; judge a few dozen",
        "           real ones, and give them with --queries and --qrels",
    ]


def pairs_lines(facts: PairsFacts, own: OwnPairs) -> list[str]:
    """Counts, lengths and language of pairs."""
    columns = ", ".join((own.query_column, own.document_column, *own.positive_columns, *own.negative_columns))
    unused = f"           columns that are not used: {', '.join(own.unused_columns)}"
    return [
        f"pairs      {own.pairs.source}: {facts.num_rows:,} rows ({columns})",
        *([unused] if own.unused_columns else []),
        f"           {facts.num_empty:,} with an empty text (skipped), {facts.num_copies:,} copies of an earlier pair "
        f"{_worry(facts.num_copies > _COPIES * facts.num_pairs)}, {facts.num_same_text:,} whose document is the query",
        f"queries    {facts.num_queries:,} different; {_lengths(facts.queries)}",
        f"documents  {facts.num_documents:,} different; {_lengths(facts.documents)}",
        f"language   queries: {facts.query_language}",
        f"           documents: {facts.document_language}",
    ]


def corpus_lines(facts: CorpusFacts | None, source: str | None) -> list[str]:
    """Counts of a corpus, and how many answers are in it."""
    if facts is None:
        return ["corpus     none given: the documents of the pairs"]
    return [
        f"corpus     {source}: {facts.num_documents:,} documents, {facts.num_empty:,} without text, "
        f"{facts.num_copies:,} copies of an earlier one {_worry(facts.num_copies > _COPIES * facts.num_documents)}",
        f"           {facts.num_found:,} of {facts.num_sought:,} documents of the pairs are in it "
        f"({facts.found_share:.1%})",
    ]


def held_out_lines(held_out: HeldOut, folder: Path) -> list[str]:
    """The retrieval task, and what it shares with training."""
    task = held_out.task
    documents = f"{len(task.corpus):,} documents"
    if len(task.corpus) - held_out.num_added < held_out.num_corpus:
        documents += f" drawn from {held_out.num_corpus:,} (figures are higher than on all of them)"
    if held_out.num_added:
        documents += f", {held_out.num_added:,} of them answers that the corpus lacked"
    seen = held_out.seen_answer_share
    return [
        f"held out   {len(task.queries):,} queries against {documents}: {folder}{os.sep}",
        f"leakage    {held_out.num_left_out:,} pairs have a held-out query and are left out of training; "
        f"{seen:.1%} of held-out queries",
        f"           have an answer that training shows with another query {_worry(seen > _SEEN)}",
    ]


def settings_line(settings: dict[str, dict[str, Any]]) -> str:
    """The settings that matter most."""
    model, data, trainer = settings["model"], settings["data"], settings["trainer"]
    teacher = f"; teachers {', '.join(data['teacher'])}" if data.get("teacher") else ""
    return (
        f"settings   {model['base_model']}, {model['max_query_tokens']} query and {model['max_document_tokens']} "
        f"document tokens, {trainer['max_steps']:,} steps of {data['batch_size']} pairs, {trainer['precision']}"
        f"{teacher}"
    )


def target_lines(settings: dict[str, dict[str, Any]], wanted: int, vocab_size: int) -> list[str]:
    """That the target is not the one that was wanted, if so."""
    target = settings["model"]["target_active_dims"]
    if target == wanted:
        return []
    return [
        f"warning    the target is {target:,} active dims, not {wanted:,}: no more than a quarter of the vocabulary of "
        f"{vocab_size:,}."
    ]


def warnings(
    facts: PairsFacts, corpus: CorpusFacts | None, held_out: HeldOut, limit: int, english_base: bool
) -> list[str]:
    """What may make the run useless, each with what to do.

    `limit` is the number of tokens that documents are cut to; `english_base` says that the base model knows English.
    """
    found = []
    language = facts.document_language.language or facts.query_language.language
    if english_base and language not in ("English", None):
        found.append(
            f"the texts look {language}, but the base model knows English; give one of theirs with --base-model."
        )
    if (unknown := max(facts.queries.unknown_share, facts.documents.unknown_share)) > _UNKNOWN:
        found.append(f"the base model's tokenizer does not know {unknown:.1%} of the tokens; another --base-model may.")
    if facts.num_pairs < _FEW_PAIRS:
        found.append(f"{facts.num_pairs:,} pairs are few; expect a small gain over BM25, if any.")
    if (copies := facts.num_copies / facts.num_pairs) > _COPIES:
        found.append(f"{copies:.0%} of the pairs are copies; remove them to save time.")
    if facts.num_documents < _COPIES * facts.num_pairs:
        found.append("few different documents answer many queries; batches without repeated texts may be small.")
    if facts.num_same_text > _COPIES * facts.num_pairs:
        found.append("many documents equal their query, which teaches nothing; check the columns.")
    if corpus and corpus.found_share < _FOUND:
        found.append(
            f"{1 - corpus.found_share:.0%} of the pairs' documents are not in the corpus with the same text; check "
            "that both files cut documents alike."
        )
    if corpus and (copies := corpus.num_copies / corpus.num_documents) > _COPIES:
        found.append(f"{copies:.0%} of the corpus are copies, which crowd rankings.")
    if held_out.seen_answer_share > _SEEN:
        found.append("training shows most held-out queries' answers; figures on documents new to it will be lower.")
    if (cut := facts.documents.share_longer(limit)) > _CUT:
        found.append(f"{cut:.0%} of the documents are cut at {limit} tokens; split them, or raise max_document_tokens.")
    if (num_queries := len(held_out.task.queries)) < 50:
        found.append(f"{num_queries} held-out queries give figures that chance moves by several points.")
    return [f"warning    {text}" for text in found]


def made_warnings(facts: MadePairsFacts) -> list[str]:
    """What may make pairs useless that were made of a corpus, each with what to do."""
    found = []
    if facts.num_copies > _COPIES * facts.num_documents:
        found.append(f"{facts.num_copies / facts.num_documents:.0%} of the corpus are copies, which crowd rankings.")
    if facts.num_short > _SHORT * (facts.num_documents - facts.num_empty - facts.num_copies - facts.num_not_drawn):
        found.append("many documents are too short to make pairs of; training does not see them.")
    if not facts.made.get(Kind.TITLE):
        found.append(
            "there are no titles, and first sentences stand for them; if a column has any, name it with --title-column."
        )
    return [f"warning    {text}" for text in found]


def title_lines(title_column: str | None) -> list[str]:
    """That titles of a column with another name than `title` are no part of what is searched."""
    if title_column in (None, "title"):
        return []
    return [
        f"warning    titles of the column {title_column} make queries and are not searched; name the column title if "
        "they shall be, as they are by all commands then."
    ]


def _kinds(facts: MadePairsFacts) -> list[str]:
    return [f"           {facts.made.get(kind, 0):,} {words}" for kind, words in _MADE.items()]


def _worry(worry: bool) -> str:
    return "(see the warning)" if worry else "(no need to worry)"


def _lengths(lengths: Lengths) -> str:
    shares = ", ".join(f"{percent} % up to {lengths.percentile(percent):,}" for percent in (50, 90, 95, 99))
    return f"tokens: {shares}, longest {lengths.longest:,}"
