"""What `compare_with_peer.py` compares: the settings of both sides' runs and of the models that they start from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from peer_sides import PeerSettings

from splade_lit.command_line.devices import precision_on_cpu

# Callbacks that measure and take time, which training for a time has no use for.
_EVALUATING = ("RetrievalEvaluation", "SparsityMonitor", "TermTable", "CarbonTracker")
# What the start model says for our side.
_SETTINGS_OF_START = ("base_model", "base_revision", "idf", "start_active_dims", "pooling", "activation")


@dataclass(frozen=True)
class Plan:
    """What is compared: an experiment's settings, and how both sides are trained."""

    config: dict[str, Any]
    seeds: list[int]
    minutes: float | None
    steps: int | None
    probe_steps: int
    lambdas: list[float]
    lambda_minutes: float | None
    peer: dict[str, Any]
    peer_start: dict[str, Any] | None = None  # an experiment whose start the peer has; the same one's if None

    def peer_settings(self, output: Path, folder: Path, seed: int, lambda_d: float, **changes: Any) -> PeerSettings:
        """Of a run of the peer's trainer: those of the experiment where they have the same meaning."""
        model, data, trainer = (self.config.get(group, {}) for group in ("model", "data", "trainer"))
        lambda_q = model.get("lambda_q", 0.0)
        settings = {
            "batch_size": data.get("batch_size", 16),
            "accumulate": trainer.get("accumulate_grad_batches") or 1,
            "micro_batch_size": None,
            "learning_rate": model.get("learning_rate", 2e-5),
            "idf_learning_rate": model.get("idf_learning_rate", 1e-3),
            "warmup_ratio": model.get("warmup_ratio", 0.1),
            "weight_decay": model.get("weight_decay", 0.0),
            "max_grad_norm": trainer.get("gradient_clip_val") or 0.0,
            "lambda_q": lambda_q if isinstance(lambda_q, int | float) else 0.0,
            "use_cpu": _on_cpu(trainer),
            "bf16": _precision(trainer) == "bf16-mixed",
            "stop_seconds": None,
            "save": True,
        }
        settings |= {name: value for name, value in self.peer.items() if value is not None} | changes
        return PeerSettings(
            start=str(output / ("start" if self.peer_start is None else "peer-start") / "model"),
            folder=str(folder),
            data=data | {"cache_dir": str(output / "cache" / f"peer-seed{seed}")},
            seed=seed,
            lambda_d=lambda_d,
            **settings,
        )


def our_config(
    config: Mapping[str, Any], output: Path, folder: Path, seed: int, steps: int, stop: float | None
) -> dict:
    """The settings of a run of ours: the experiment's, from the start model, without evaluations, with a clock."""
    changed = json.loads(json.dumps(config))
    changed["seed_everything"] = changed.setdefault("data", {})["seed"] = seed
    changed["data"]["cache_dir"] = str(output / "cache" / f"ours-seed{seed}")  # so that all that is made counts
    model = changed.setdefault("model", {})
    for name in _SETTINGS_OF_START:
        model.pop(name, None)
    model["base_model"] = str(output / "start" / "model")
    trainer = changed.setdefault("trainer", {})
    kept = [one for one in trainer.get("callbacks") or [] if _class(one) not in _EVALUATING]
    clock = {"class_path": "peer_sides.StepClock", "init_args": {"folder": str(folder), "stop_seconds": stop}}
    trainer |= {"default_root_dir": str(folder), "max_steps": steps, "callbacks": [*kept, clock]}
    trainer |= {"limit_val_batches": 0, "num_sanity_val_steps": 0}
    return changed


def start_config(config: Mapping[str, Any], folder: Path) -> dict:
    """Settings that make the start model: the experiment's, without a step of training and without a teacher."""
    changed = json.loads(json.dumps(config))
    changed["trainer"] = {"accelerator": "cpu", "max_steps": 0, "default_root_dir": str(folder)}
    for name in [name for name in changed.get("data", {}) if name.startswith(("teacher", "score", "block"))]:
        del changed["data"][name]
    for name in ("ranking", "target_active_dims", "target_flops"):
        changed.get("model", {}).pop(name, None)
    changed.setdefault("data", {})["cache_dir"] = str(folder.parent / "cache" / folder.name)
    return changed


def _class(callback: Any) -> str:
    return str(callback.get("class_path") if isinstance(callback, dict) else callback).rpartition(".")[2]


def _on_cpu(trainer: Mapping[str, Any]) -> bool:
    import torch

    return trainer.get("accelerator") == "cpu" or not torch.cuda.is_available()


def _precision(trainer: Mapping[str, Any]) -> Any:
    """What the experiment's precision comes to on this machine."""
    precision = trainer.get("precision", "32-true")
    return precision_on_cpu(precision) if _on_cpu(trainer) else precision


def changed_settings(config: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A copy of an experiment's settings with some changed, each as `group.name=value`."""
    changed = json.loads(json.dumps(config))
    for change in changes:
        name, _, value = change.partition("=")
        *groups, last = name.split(".")
        place = changed
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = yaml.safe_load(value)
    return changed
