"""What was seen in one's own data, in lines for a person."""

import os
from pathlib import Path

from splade_lit.own_data.held_out import HeldOut
from splade_lit.own_data.inspection import CorpusFacts, Lengths, PairsFacts
from splade_lit.own_data.settings import Recipe, Source

_PERCENTILES = (50, 90, 95, 99)
_FEW_PAIRS = 1_000
_COPIES = 0.1  # of pairs or documents, more than which are told
_UNKNOWN = 0.01  # of tokens
_FOUND = 0.9  # of answers
_CUT = 0.2  # of documents
_SEEN = 0.5  # of held-out queries


def pairs_lines(facts: PairsFacts, source: Source) -> list[str]:
    """Counts, lengths and language of pairs."""
    columns = ", ".join((source.query_column, source.document_column, *source.negative_columns))
    return [
        f"pairs      {source.pairs}: {facts.num_rows:,} rows ({columns})",
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


def settings_line(recipe: Recipe) -> str:
    """The settings that matter most."""
    model, data, trainer = (recipe.values(group) for group in ("model", "data", "trainer"))
    return (
        f"settings   {model['base_model']}, {model['max_query_tokens']} query and {model['max_document_tokens']} "
        f"document tokens, {trainer['max_steps']:,} steps of {data['batch_size']} pairs, {trainer['precision']}"
    )


def warnings(
    facts: PairsFacts, corpus: CorpusFacts | None, held_out: HeldOut, recipe: Recipe, english_base: bool
) -> list[str]:
    """What may make the run useless, each with what to do.

    Args:
        facts: what is in the pairs.
        corpus: what is in the corpus, if there is one.
        held_out: the retrieval task.
        recipe: the settings chosen.
        english_base: whether the base model is one that was chosen here, and so knows English.
    """
    told = []
    language = facts.document_language.language or facts.query_language.language
    if english_base and language not in ("English", None):
        told.append(
            f"the texts look {language}, but the base model knows English; give one of theirs with --base-model."
        )
    unknown = max(facts.queries.unknown_share, facts.documents.unknown_share)
    if unknown > _UNKNOWN:
        told.append(f"the base model's tokenizer does not know {unknown:.1%} of the tokens; another --base-model may.")
    if facts.num_pairs < _FEW_PAIRS:
        told.append(f"{facts.num_pairs:,} pairs are few; expect a small gain over BM25, if any.")
    if facts.num_copies > _COPIES * facts.num_pairs:
        told.append(f"{facts.num_copies / facts.num_pairs:.0%} of the pairs are copies; remove them to save time.")
    if facts.num_documents < facts.num_pairs * _COPIES:
        told.append("few different documents answer many queries; batches without repeated texts may be small.")
    if facts.num_same_text > _COPIES * facts.num_pairs:
        told.append("many documents equal their query, which teaches nothing; check the columns.")
    if corpus is not None and corpus.found_share < _FOUND:
        told.append(
            f"{1 - corpus.found_share:.0%} of the pairs' documents are not in the corpus with the same text; check "
            "that both files cut documents alike."
        )
    if corpus is not None and corpus.num_copies > _COPIES * corpus.num_documents:
        told.append(f"{corpus.num_copies / corpus.num_documents:.0%} of the corpus are copies, which crowd rankings.")
    if held_out.seen_answer_share > _SEEN:
        told.append("training shows most held-out queries' answers; figures on documents new to it will be lower.")
    limit = recipe.values("model")["max_document_tokens"]
    if (cut := facts.documents.share_longer(limit)) > _CUT:
        told.append(f"{cut:.0%} of the documents are cut at {limit} tokens; split them, or raise max_document_tokens.")
    if len(held_out.task.queries) < 50:
        told.append(f"{len(held_out.task.queries)} held-out queries give figures that chance moves by several points.")
    return [f"warning    {text}" for text in told]


def _worry(worry: bool) -> str:
    return "(see the warning)" if worry else "(no need to worry)"


def _lengths(lengths: Lengths) -> str:
    shares = ", ".join(f"{percent} % up to {lengths.percentile(percent):,}" for percent in _PERCENTILES)
    return f"tokens: {shares}, longest {int(lengths.tokens[-1]):,}"
