"""`python -m splade_lit.fit`: train an encoder as a YAML file says.

    python -m splade_lit.fit --config experiments/quickstart.yaml
    python -m splade_lit.fit --config experiments/quickstart.yaml --model.lambda_d 1e-3 --trainer.max_steps 50

Every setting of the model, the data and the trainer can be given in the file or on the command line; `--help` explains
them, `--print_config` prints a whole file. A run leaves in its folder (`trainer.default_root_dir`): config.yaml,
metrics.json, metrics.csv, checkpoints/ and model/.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from rich.console import Console

from splade_lit.callbacks.csv_log import CsvLog
from splade_lit.callbacks.retrieval import RetrievalEvaluation
from splade_lit.commands import run_command
from splade_lit.data.datamodule import PairsDataModule
from splade_lit.errors import UserError
from splade_lit.evaluation.tables import headline_figures, metrics_table
from splade_lit.files import replace_text
from splade_lit.module import SpladeModule


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration to the folder of the run and hands it to the loggers."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write `config.yaml` before anything long starts."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        text = self.parser.dump(self.config, skip_none=False)
        replace_text(Path(trainer.default_root_dir) / "config.yaml", text)
        for logger in trainer.loggers:
            logger.log_hyperparams(self.config.as_dict())


class FitCLI(LightningCLI):
    """The command line of `fit`: model, data and trainer, linked where they must agree."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Settings of the run itself, and links between model and data."""
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint to resume from.")
        parser.add_argument("--overwrite", type=bool, default=False, help="Start anew in a folder that holds a run.")
        parser.link_arguments("model.base_model", "data.tokenizer")
        parser.link_arguments("model.max_query_tokens", "data.max_query_tokens")
        parser.link_arguments("model.max_document_tokens", "data.max_document_tokens")

    def before_instantiate_classes(self) -> None:
        """Check the folder of the run, and fall back where the machine has no GPU."""
        _check_run_folder(self.config)
        if self.config.trainer.precision == "16-mixed" and not _runs_on_gpu(self.config.trainer.accelerator):
            self.config.trainer.precision = "32-true"
            print("warning: no GPU here, so trainer.precision 16-mixed falls back to 32-true.", file=sys.stderr)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A trainer that always keeps metrics.csv and checkpoints/last.ckpt in the folder of the run."""
        settings = self.config_init["trainer"]
        folder = Path(settings["default_root_dir"])
        loggers = settings["logger"] or []
        kwargs["logger"] = [CsvLog(folder), *(loggers if isinstance(loggers, list) else [loggers])]
        callbacks = settings["callbacks"] = settings["callbacks"] or []
        checkpoints = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        if not checkpoints and settings["enable_checkpointing"] is not False:
            checkpoints = [ModelCheckpoint(filename="{step}", save_last="link", save_on_exception=True)]
            callbacks.extend(checkpoints)
        for checkpoint in checkpoints:
            checkpoint.dirpath = checkpoint.dirpath or str(folder / "checkpoints")
        return super().instantiate_trainer(**kwargs)


def _runs_on_gpu(accelerator: Any) -> bool:
    return accelerator not in ("cpu", "tpu") and (torch.cuda.is_available() or torch.backends.mps.is_available())


def _check_run_folder(config: Any) -> None:
    folder = config.trainer.default_root_dir
    if folder is None:
        raise UserError("The run has no folder; set trainer.default_root_dir, such as runs/my_run.")
    if config.ckpt_path is not None:
        _check_checkpoint(Path(config.ckpt_path))
    elif (Path(folder) / "metrics.json").exists() and not config.overwrite:
        raise UserError(
            f"{folder} holds a run already; set another --trainer.default_root_dir, resume it with "
            f"--ckpt_path {folder}/checkpoints/last.ckpt, or start anew with --overwrite true."
        )


def _check_checkpoint(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} is not a file; give a checkpoint such as runs/NAME/checkpoints/last.ckpt.")
    try:
        checkpoint = torch.load(path, map_location="meta", weights_only=True, mmap=True)
        whole = isinstance(checkpoint, dict) and {"state_dict", "optimizer_states"} <= set(checkpoint)
    except Exception:
        whole = False
    if not whole:
        raise UserError(f"{path} is not a checkpoint of a run; give one such as runs/NAME/checkpoints/last.ckpt.")


def fit(cli: FitCLI) -> None:
    """Train, save the model, and print what came out; the last line tells where the model is and its figures."""
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True)
    if not cli.trainer.is_global_zero:
        return
    model_folder = Path(cli.trainer.default_root_dir) / "model"
    cli.model.encoder.save(model_folder)
    figures: dict[str, float] = {}
    for callback in cli.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RetrievalEvaluation):
            Console().print(metrics_table(callback.stages))
            figures |= headline_figures(callback.stages["after"])
    print("  ".join([f"model: {model_folder}", *(f"{name} {value:.4g}" for name, value in figures.items())]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train.

    Raises:
        UserError: bad input.
    """
    cli = FitCLI(
        SpladeModule,
        PairsDataModule,
        save_config_callback=SaveRunConfig,
        seed_everything_default=12,
        auto_configure_optimizers=False,
        run=False,
        args=None if arguments is None else list(arguments),
        parser_kwargs={"prog": "python -m splade_lit.fit", "description": "Train an encoder as a YAML file says."},
    )
    fit(cli)


if __name__ == "__main__":
    run_command(main)
