"""The metadata of a model card, as the Hub defines it."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from splade_lit.card.record import Card, Training
from splade_lit.runs.stages import by_set, published_name

_TAGS = ["sentence-transformers", "sparse-encoder", "sparse", "asymmetric", "inference-free", "splade"]


def metadata(card: Card) -> ModelCardData:
    """The metadata of a card."""
    training, base = card.training, card.model.base
    results = eval_results(card)
    return ModelCardData(
        language=card.language or None,
        license=card.license,
        tags=_TAGS + (_training_tags(training) if training else []),
        widget=[{"text": text} for text in card.widget] or None,
        datasets=[training.train.source.hub_id] if training and training.train.source.hub_id else None,
        base_model=base.hub_id if base else None,
        pipeline_tag="feature-extraction",
        library_name="sentence-transformers",
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        co2_eq_emissions=_emissions(card),
        model_name=card.name if results else None,
        eval_results=results or None,
    )


def eval_results(card: Card) -> list[EvalResult]:
    """Every figure of every set that the model was evaluated on, and of the means."""
    if card.retrieval is None:
        return []
    return [
        EvalResult(
            task_type="sparse-nano-beir" if name.endswith("_mean") else "sparse-information-retrieval",
            task_name="Sparse Nano BEIR" if name.endswith("_mean") else "Sparse Information Retrieval",
            dataset_name=name.replace("_mean", " mean"),
            dataset_type=name,
            metric_type=published_name(metric),
            metric_name=published_name(metric).replace("_", " ").title(),
            metric_value=value,
        )
        for name, figures in by_set(card.retrieval.stages.get("after", {})).items()
        for metric, value in figures.items()
    ]


def _training_tags(training: Training) -> list[str]:
    losses = dict.fromkeys(f"loss:{part.tag}" for part in training.parts if part.tag)
    return ["generated_from_trainer", f"dataset_size:{training.train.num_pairs}", "loss:SpladeLoss", *losses]


def _emissions(card: Card) -> dict[str, Any] | None:
    if card.footprint is None:
        return None
    total = card.footprint.total
    emissions = {
        "emissions": 1000 * total.emissions_kg,
        "energy_consumed": total.energy_kwh,
        "source": "codecarbon",
        "training_type": "fine-tuning",
        "on_cloud": card.footprint.on_cloud,
        "cpu_model": card.footprint.cpu_model,
        "ram_total_size": card.footprint.ram_gb,
        "hours_used": round(total.seconds / 3600, 3),
    }
    if card.footprint.country:
        emissions["geographical_location"] = card.footprint.country
    if card.training and card.training.hardware.gpus:
        emissions["hardware_used"] = gpu_names(card.training.hardware.gpus)
    return emissions


def gpu_names(gpus: list[str]) -> str:
    """GPUs counted by name.

    >>> gpu_names(["NVIDIA H100", "NVIDIA H100"])
    '2 x NVIDIA H100'
    """
    return ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
