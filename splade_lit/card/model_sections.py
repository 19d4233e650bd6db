"""Sections of a card on the model: what it is, how it is used, how good it is. Without data a section is empty."""

import json
from collections.abc import Iterable, Mapping

import torch

from splade_lit.card import citations as papers
from splade_lit.card.markdown import (
    bold,
    code_cell,
    count,
    fenced,
    figure,
    link,
    link_with_commit,
    listed,
    plural,
    section,
    table,
)
from splade_lit.card.record import Card
from splade_lit.runs.stages import MAIN, by_set, published_name

_UNKNOWN_ID = "path/to/model"
_EVALUATION_PAGE = "https://sbert.net/docs/package_reference/sparse_encoder/evaluation.html"


def introduction(card: Card) -> str:
    """One paragraph."""
    base, training = card.model.base, card.training
    made = f", finetuned from {link(base)}" if base else ""
    if training:
        made += f"{'' if base else ', trained'} on {link(training.train.source, 'datasets/')}"
    return (
        f"This is an inference-free SPLADE encoder{made} with splade_lit. It maps queries and documents to sparse "
        f"vectors of {card.model.dims} dimensions, one a vocabulary entry, for search with an inverted index. A "
        "document goes through a masked language model; a query is a lookup in a table of token weights, so that no "
        "neural network runs at query time."
    )


def description(card: Card) -> str:
    """What the model is, line by line."""
    model = card.model
    lines = ["- **Model Type:** Asymmetric Inference-free SPLADE Sparse Encoder"]
    if model.base:
        lines.append(f"- **Base Model:** {link_with_commit(model.base)}")
    lines += [
        f"- **Model Size:** {count(model.num_parameters)} parameters",
        f"- **Maximum Sequence Length:** {model.max_document_tokens} tokens",
        f"- **Maximum Query Length:** {model.max_query_tokens} tokens",
        f"- **Output Dimensionality:** {model.dims} dimensions"
        + (f", at most {model.max_active_dims} of them active" if model.max_active_dims else ""),
        "- **Similarity Function:** Dot Product",
    ]
    if card.training:
        lines.append(f"- **Training Dataset:** {link(card.training.train.source, 'datasets/')}")
    if card.language:
        lines.append(f"- **Language:** {', '.join(card.language)}")
    if card.license:
        lines.append(f"- **License:** {card.license}")
    return section(3, "Model Description", "\n".join(lines))


def sources() -> str:
    """Where to read on."""
    return section(
        3,
        "Model Sources",
        "\n".join(
            [
                "- **Format:** [sentence-transformers](https://sbert.net), whose releases from 5.0 on open this model",
                "- **Documentation:** [sparse encoders](https://www.sbert.net/docs/sparse_encoder/usage/usage.html)",
                "- **Hugging Face:** [models of this kind]"
                "(https://huggingface.co/models?library=sentence-transformers&other=sparse-encoder)",
            ]
        ),
    )


def architecture(card: Card) -> str:
    """The parts of the encoder."""
    model = card.model
    query = {"frozen": model.frozen_idf, "dims": model.dims, "max_tokens": model.max_query_tokens}
    document = {"max_tokens": model.max_document_tokens}
    pooling = {"pooling": model.pooling, "activation": model.activation, "dims": model.dims}
    lines = [
        "AsymmetricSparseEncoder(",
        f"  (query): IdfQueryEncoder({query}), tokenizer: {model.tokenizer_class}",
        f"  (document): MlmDocumentEncoder({document}), model: {model.document_class}, tokenizer: "
        f"{model.tokenizer_class}",
        f"    -> SPLADE pooling({pooling})",
        ")",
    ]
    return section(3, "Full Model Architecture", fenced("", "\n".join(lines)))


def usage_sentence_transformers(card: Card) -> str:
    """An example for sentence-transformers."""
    code = _usage_code(
        card,
        "from sentence_transformers import SparseEncoder",
        f"model = SparseEncoder({json.dumps(card.model_id or _UNKNOWN_ID)})",
    )
    return section(
        3,
        "Direct Usage (Sentence Transformers)",
        fenced("bash", "pip install -U sentence-transformers"),
        fenced("python", code),
    )


def usage_splade_lit(card: Card) -> str:
    """The same example for splade_lit."""
    code = _usage_code(
        card,
        "from splade_lit import AsymmetricSparseEncoder",
        f"model = AsymmetricSparseEncoder.load({json.dumps(card.model_id or _UNKNOWN_ID)})",
    )
    return section(3, "Direct Usage (splade_lit)", fenced("python", code))


def _usage_code(card: Card, first: str, load: str) -> str:
    example = card.example
    queries = [example.query] if example else ["how do magnets work"]
    documents = example.documents if example else ["Magnets attract iron.", "Rain falls from clouds."]
    lines = [first, "", f"{load}  # a folder, or an id on the Hub", "", "queries = ["]
    lines += [f"    {query!r}," for query in queries]
    lines += ["]", "documents = ["]
    lines += [f"    {document!r}," for document in documents]
    lines += [
        "]",
        "query_embeddings = model.encode_query(queries)",
        "document_embeddings = model.encode_document(documents)",
        "print(query_embeddings.shape, document_embeddings.shape)",
        f"# {torch.Size([len(queries), card.model.dims])} {torch.Size([len(documents), card.model.dims])}",
        "",
        "scores = model.similarity(query_embeddings, document_embeddings)",
        "print(scores)",
    ]
    if example:
        lines.append(f"# {torch.tensor([example.scores])}")
    return "\n".join(lines)


def metrics(card: Card) -> str:
    """Figures of retrieval: a table of sets, one of each mean, one in comparison."""
    if card.retrieval is None or not (after := by_set(card.retrieval.stages.get("after", {}))):
        return ""
    means = {name: figures for name, figures in after.items() if name.endswith("_mean")}
    sets = {name: figures for name, figures in after.items() if name not in means}
    parts = []
    if sets:
        parts.append(
            section(
                4,
                "Sparse Information Retrieval",
                "\n".join(
                    [
                        f"* {plural('Dataset', sets)}: {listed(sets)}",
                        _evaluator("SparseInformationRetrievalEvaluator"),
                        *_task_lines(card, sets),
                    ]
                ),
                _figures_table(sets),
            )
        )
    for name, figures in means.items():
        members = [task.name for task in card.retrieval.tasks if f"{task.group}_mean" == name]
        lines = [
            f"* Dataset: `{name}`" + (f", the mean over {listed(members)}" if members else ""),
            _evaluator("SparseNanoBEIREvaluator"),
        ]
        parts.append(section(4, "Sparse Nano BEIR", "\n".join(lines), _figures_table({"Value": figures})))
    parts.append(_stages_table(card))
    return section(3, "Metrics", *parts)


def _evaluator(name: str) -> str:
    link = f"{_EVALUATION_PAGE}#sentence_transformers.sparse_encoder.evaluation.{name}"
    return f"* Evaluated with splade_lit; figures have the names and definitions of [`{name}`]({link})"


def _task_lines(card: Card, sets: Iterable[str]) -> list[str]:
    assert card.retrieval is not None
    lines = [
        f"* `{task.name}`: {task.num_queries:,} queries, {task.num_documents:,} documents"
        + (", graded judgements (nDCG takes grades as gains)" if task.graded else "")
        for task in card.retrieval.tasks
        if task.name in sets
    ]
    return [*lines, "* Exact search over the whole corpus; ties are broken by document id"]


def _figures_table(sets: Mapping[str, Mapping[str, float]]) -> str:
    metrics = dict.fromkeys(metric for figures in sets.values() for metric in figures)
    rows = [
        [published_name(metric), *(figure(figures[metric]) if metric in figures else "-" for figures in sets.values())]
        for metric in metrics
    ]
    return table(["Metric", *sets], [bold(row) if row[0] == published_name(MAIN) else row for row in rows])


def _stages_table(card: Card) -> str:
    """nDCG@10 of the model beside BM25 and beside itself before training, where these were measured."""
    assert card.retrieval is not None
    names = {"bm25": "BM25", "before": "before training", "after": "this model"}
    stages = {stage: by_set(card.retrieval.stages[stage]) for stage in names if stage in card.retrieval.stages}
    if len(stages) < 2:
        return ""
    sets = list(stages["after"])
    rows = [
        [names[stage], *(figure(figures[one][MAIN]) if one in figures else "-" for one in sets)]
        for stage, figures in stages.items()
    ]
    return section(4, f"{published_name(MAIN)} in Comparison", table(["Stage", *sets], [*rows[:-1], bold(rows[-1])]))


def sparsity(card: Card) -> str:
    """How the active dims of documents are spread."""
    facts = card.sparsity
    if facts is None:
        return ""
    frequent = ", ".join(f"{code_cell(token)} {share:.0%}" for token, share in facts.most_frequent[:10])
    lines = [
        f"Of {facts.num_documents:,} training documents:",
        "",
        f"- **Active Dims of a Document:** mean {figure(facts.active_dims)}, median {facts.active_dims_median}, "
        f"95th percentile {facts.active_dims_p95}",
        f"- **Dead Dims:** {facts.dead_dims_ratio:.1%} of the vocabulary, active in none of them",
    ]
    if frequent:
        lines.append(f"- **Most Frequent Dims:** {frequent}")
    return section(3, "Sparsity", "\n".join(lines))


def citations(card: Card) -> str:
    """What to cite for what the model was made with."""
    parts = card.training.parts if card.training else []
    entries = {
        "SPLADE": papers.SPLADE,
        "Inference-free Retrieval": papers.INFERENCE_FREE,
        **{citation.title: citation.bibtex for part in parts for citation in part.citations},
        "Sentence Transformers": papers.SENTENCE_TRANSFORMERS,
    }
    return section(3, "BibTeX", *(section(4, name, fenced("bibtex", entry)) for name, entry in entries.items()))
