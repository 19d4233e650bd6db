"""What `python -m splade_lit.fit` does: from settings to a trainer that keeps the folder of the run, and training."""

import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from splade_lit.command_line.arguments import parse_settings
from splade_lit.command_line.exit_codes import quiet_libraries
from splade_lit.core.errors import UserError, first_line
from splade_lit.core.files import replace_text
from splade_lit.core.ranges import LARGEST_SEED, check_range
from splade_lit.data.datamodule import ENCODER_SETTINGS, PairsDataModule
from splade_lit.runs.config import CONFIG
from splade_lit.runs.folder import CHECKPOINTS, MODEL, check_run_folder, check_same_model, remove_run
from splade_lit.runs.stages import headline_figures
from splade_lit.runs.stages_table import stages_table
from splade_lit.training.callbacks.csv_log import CsvLog
from splade_lit.training.callbacks.last_checkpoint import LastCheckpoint
from splade_lit.training.callbacks.retrieval import RetrievalEvaluation, check_watched
from splade_lit.training.callbacks.save_model import SaveModel
from splade_lit.training.callbacks.step_progress import ProgressLines, StepProgressBar
from splade_lit.training.callbacks.stop_signals import StopSignals
from splade_lit.training.callbacks.wandb_log import WandbLog
from splade_lit.training.help_text import LINKS
from splade_lit.training.module import SpladeModule, check_precision


class OpenRunFolder(Callback):
    """Opens the folder of the run: removes what an earlier run left, writes the resolved configuration.

    Args:
        config: the configuration as YAML.
        settings: the same for loggers.
        clear: remove what an earlier run left; not where that run is resumed.
    """

    def __init__(self, config: str, settings: dict[str, Any], clear: bool) -> None:
        self.config = config
        self.settings = settings
        self.clear = clear

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Do so when the data have been read and before anything long starts.

        Raises:
            UserError: the run has no known end, or its data are fewer than its settings ask for.
        """
        if stage != "fit":
            return
        try:
            trainer.fit_loop.setup_data()  # or Lightning would speak up only after the first evaluation
            _ = pl_module.total_steps
        except (MisconfigurationException, ValueError) as error:
            raise UserError(f"trainer: {first_line(error)}.") from error
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        if self.clear:
            remove_run(folder)
        replace_text(folder / CONFIG, self.config)
        for logger in trainer.loggers:
            logger.log_hyperparams(self.settings)


class FitCLI(LightningCLI):
    """The command line of `fit`: model, data and trainer, linked where they must agree."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Settings of the run itself, and links between model and data."""
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint to resume from.")
        parser.add_argument("--overwrite", type=bool, default=False, help="Start again in a folder that holds a run.")
        for name in ENCODER_SETTINGS:
            # From the model itself, which knows its own limits and prompts where none are given.
            parser.link_arguments("model", f"data.{name}", partial(_encoder_setting, name=name), "instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a mistake ends in one sentence."""
        self.config = parse_settings(parser, args, LINKS)
        check_range("", 0, LARGEST_SEED, seed_everything=self.config.seed_everything)

    def before_instantiate_classes(self) -> None:
        """Check the folder of the run, and fall back where the machine has no GPU."""
        check_run_folder(self.config.trainer.default_root_dir, self.config.ckpt_path, self.config.overwrite)
        if self.config.trainer.precision == "16-mixed" and not _runs_on_gpu(self.config.trainer.accelerator):
            self.config.trainer.precision = "32-true"
            print("warning: no GPU here, so trainer.precision 16-mixed falls back to 32-true.", file=sys.stderr)
        resolved = self.config.clone()
        resolved.ckpt_path, resolved.overwrite = None, False
        self.opens_folder = OpenRunFolder(
            self.parser.dump(resolved, skip_unset=False), resolved.as_dict(), clear=self.config.ckpt_path is None
        )
        for logger in _as_list(self.config.trainer.logger):
            if isinstance(logger, Namespace) and issubclass(resolve_name(logger.class_path), WandbLogger):
                _fill_in(logger, Path(self.config.trainer.default_root_dir))

    def instantiate_classes(self) -> None:
        """Instantiate, and pass on the one sentence of a class that refuses its settings.

        Raises:
            UserError: a class refuses its settings.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from error
            if isinstance(error.__cause__, MisconfigurationException):
                raise UserError(f"{first_line(error.__cause__)}.") from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A trainer that always keeps metrics.csv, checkpoints/last.ckpt and model/ in the folder of the run.

        Raises:
            UserError: Lightning refuses its settings.
        """
        settings = self.config_init["trainer"]
        folder = Path(settings["default_root_dir"])
        loggers = [logger for logger in _as_list(settings["logger"]) if isinstance(logger, Logger)]
        kwargs["logger"] = [CsvLog(folder), *loggers]
        callbacks: list[Callback] = [self.opens_folder, StopSignals(), *_as_list(settings["callbacks"])]
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str((folder / CHECKPOINTS).resolve())
                callback.save_last = False  # last.ckpt is kept below
        if settings["enable_checkpointing"] is not False:
            callbacks.append(LastCheckpoint(folder / CHECKPOINTS))
        if not any(isinstance(callback, SaveModel) for callback in callbacks):
            callbacks.append(SaveModel())
        if settings["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(StepProgressBar() if sys.stdout.isatty() else ProgressLines())
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"trainer: {first_line(error)}.") from error


def _fill_in(logger: Namespace, folder: Path) -> None:
    """Make W&B's logger the one that defines metrics, and name the run and put its files where it does not say."""
    if resolve_name(logger.class_path) is WandbLogger:
        logger.class_path = f"{WandbLog.__module__}.{WandbLog.__name__}"
    settings = logger.init_args
    if settings.name is None:
        settings.name = folder.resolve().name
    if settings.save_dir == ".":  # the default
        settings.save_dir = str(folder)


def _encoder_setting(model: SpladeModule, name: str) -> Any:
    return getattr(model.encoder, name)


def _as_list(value: Any) -> list[Any]:
    """None is no element, True or False none either: they ask for a default, which the run has anyway."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _runs_on_gpu(accelerator: Any) -> bool:
    return accelerator not in ("cpu", "tpu") and (torch.cuda.is_available() or torch.backends.mps.is_available())


def fit(cli: FitCLI) -> None:
    """Train and print the figures; the last line names the model's folder and its main figures."""
    _train(cli)
    if not cli.trainer.is_global_zero:
        return
    model_folder = Path(cli.trainer.default_root_dir) / MODEL
    figures: dict[str, float] = {}
    for callback in cli.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RetrievalEvaluation):
            Console().print(stages_table(callback.stages))
            figures |= headline_figures(callback.stages.get("after", {}))
    print("  ".join([f"model: {model_folder}", *(f"{name} {value:.4g}" for name, value in figures.items())]))


def _train(cli: FitCLI) -> None:
    """Train; a run that stops before its end says how to go on with it."""
    trainer, checkpoint = cli.trainer, cli.config.ckpt_path
    if checkpoint is not None:
        check_same_model(Path(checkpoint), cli.model)
    check_precision(trainer.precision)
    check_watched(trainer, cli.model.logged_names)
    try:
        trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except UserError:
        raise
    except MisconfigurationException as error:
        raise UserError(f"{first_line(error)}.") from error
    except BaseException as error:
        if not trainer.is_global_zero and isinstance(error, (SystemExit, KeyboardInterrupt)):
            sys.exit(0)  # with another code Lightning would kill rank 0, which may be saving still
        _say_how_to_resume(trainer)
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None  # Lightning has shut down and would exit with code 1
        raise
    finally:
        if trainer.state.status == TrainerStatus.INTERRUPTED and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # rank 0 has saved; others may wait for it for ever
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StopSignals):
                callback.restore()


def _say_how_to_resume(trainer: L.Trainer) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LastCheckpoint) and callback.step and trainer.is_global_zero:
            print(
                f"The run was stopped; go on after step {callback.step} with: python -m splade_lit.fit "
                f"--config {Path(trainer.default_root_dir) / CONFIG} --ckpt_path {callback.path}",
                file=sys.stderr,
            )


def run(arguments: Sequence[str]) -> None:
    """Parse the command line and train.

    Raises:
        UserError: bad input.
    """
    quiet_libraries()
    fit(
        FitCLI(
            SpladeModule,
            PairsDataModule,
            save_config_callback=None,  # the run's own callback does it
            seed_everything_default=12,
            auto_configure_optimizers=False,
            run=False,
            args=list(arguments),
            parser_kwargs={"prog": "python -m splade_lit.fit", "exit_on_error": False, "allow_abbrev": False},
        )
    )
