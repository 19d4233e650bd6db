"""A model card as the text of its README.md: a pure function of its record."""

from huggingface_hub import ModelCard

from splade_lit.card import model_sections as model
from splade_lit.card import training_sections as training
from splade_lit.card.markdown import escaped, join, section
from splade_lit.card.metadata import metadata
from splade_lit.card.record import Card


def model_card(card: Card) -> str:
    """The text of a model card's README.md."""
    text = f"---\n{metadata(card).to_yaml()}\n---\n\n{_body(card)}\n"
    return str(ModelCard(text))  # parsed once, so that what the Hub cannot read is never written


def _body(card: Card) -> str:
    return join(
        f"# {escaped(card.name)}",
        model.introduction(card),
        section(2, "Model Details", model.description(card), model.sources(), model.architecture(card)),
        section(2, "Usage", model.usage_sentence_transformers(card), model.usage_splade_lit(card)),
        section(2, "Evaluation", model.metrics(card), model.sparsity(card)),
        section(
            2,
            "Training Details",
            training.dataset(card, "Training"),
            training.dataset(card, "Evaluation"),
            training.hyperparameters(card),
            training.logs(card),
            training.environment(card),
            training.hardware(card),
            training.times(card),
            training.versions(card),
        ),
        section(2, "Citation", model.citations(card)),
    )
