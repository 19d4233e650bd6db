"""What `python -m splade_lit.fit` does: from settings to a trainer that keeps the folder of the run, and training."""

import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from pkgutil import resolve_name
from statistics import fmean
from typing import Any

import lightning as L
import torch
from filelock import FileLock
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from splade_lit.command_line.arguments import parse_settings
from splade_lit.command_line.devices import precision_on_cpu
from splade_lit.command_line.exit_codes import quiet_libraries
from splade_lit.core.distributed import lost_process
from splade_lit.core.errors import UserError, first_line
from splade_lit.core.files import hold_folder, remove_unfinished, replace_text
from splade_lit.core.ranges import LARGEST_SEED, check_range
from splade_lit.data.datamodule import ENCODER_SETTINGS, PairsDataModule
from splade_lit.encoder.pruning import Pruning
from splade_lit.losses.targets import Target
from splade_lit.runs.config import CONFIG
from splade_lit.runs.folder import (
    CHECKPOINTS,
    LAST,
    MODEL,
    check_checkpoint,
    check_may_replace,
    check_run_folder,
    check_same_model,
    has_no_result,
    last_checkpoint,
    remove_run,
)
from splade_lit.runs.stages import by_set, headline_figures, print_stages
from splade_lit.training.callbacks.csv_log import CsvLog
from splade_lit.training.callbacks.guard import CollapseGuard
from splade_lit.training.callbacks.hooks import callbacks_of
from splade_lit.training.callbacks.last_checkpoint import LastCheckpoint
from splade_lit.training.callbacks.retrieval import RetrievalEvaluation, check_watched
from splade_lit.training.callbacks.save_model import SaveModel
from splade_lit.training.callbacks.step_progress import ProgressLines, StepProgressBar
from splade_lit.training.callbacks.stop_signals import StopSignals
from splade_lit.training.callbacks.wandb_log import WandbLog
from splade_lit.training.checkpoint_io import WholeCheckpoints
from splade_lit.training.help_text import LINKS
from splade_lit.training.module import SpladeModule
from splade_lit.training.observer import observe_patiently
from splade_lit.training.run_checks import check_accumulation, check_precision

logger = logging.getLogger(__name__)

_MISSED = 0.1  # of a target, from which a line of the end is a warning


class OpenRunFolder(Callback):
    """Writes the resolved configuration to the folder of the run and to loggers; `clear` removes an earlier run.

    That is one that `overwrite` gives up, or, if `begins_again`, one without a result: another process may have written
    there since the settings were read. No other run may write to the folder until this one ends.
    """

    def __init__(self, config: str, settings: dict[str, Any], clear: bool, overwrite: bool, begins_again: bool) -> None:
        self.config = config
        self.settings = settings
        self.clear, self.overwrite, self.begins_again = clear, overwrite, begins_again
        self._held: FileLock | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Do so once the data are read and enough for the settings, and the run has a known end."""
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
        self._held = hold_folder(folder)
        remove_unfinished(folder / CHECKPOINTS)
        if self.clear:
            check_may_replace(folder, self.overwrite or (self.begins_again and has_no_result(str(folder))))
            remove_run(folder)
        replace_text(folder / CONFIG, self.config)
        for logger in trainer.loggers:
            logger.log_hyperparams(self.settings)

    def release(self) -> None:
        """Let others write; to be called when the run has ended, in whatever way."""
        if self._held is not None:
            self._held.release()


class FitCLI(LightningCLI):
    """The command line of `fit`: model, data and trainer, linked where they must agree."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Settings of the run itself, and links between model and data."""
        ckpt_path = "Checkpoint to resume from; `last` for the run's own, or a new run where there is none."
        parser.add_argument("--ckpt_path", type=str | None, default=None, help=ckpt_path)
        parser.add_argument("--overwrite", type=bool, default=False, help="Start again in a folder that holds a run.")
        for name in ENCODER_SETTINGS:
            # From the model itself, which knows its own limits and prompts where none are given.
            parser.link_arguments("model", f"data.{name}", attrgetter(f"encoder.{name}"), "instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a mistake ends in one sentence."""
        self.config = parse_settings(parser, args, LINKS)
        check_range("", 0, LARGEST_SEED, seed_everything=self.config.seed_everything)
        # Lightning divides by the first two, and takes the others without a word.
        trainer = self.config.trainer
        positive = ("accumulate_grad_batches", "check_val_every_n_epoch")
        check_range("trainer", 1, **{name: trainer[name] for name in positive})
        check_range("trainer", 0, log_every_n_steps=trainer.log_every_n_steps)
        check_range("trainer", 0, gradient_clip_val=trainer.gradient_clip_val)
        if trainer.val_check_interval == 0:
            raise UserError("trainer.val_check_interval is 0; give a number of batches, or a fraction of an epoch.")
        if trainer.barebones:
            raise UserError("trainer.barebones leaves out logs, checkpoints and model, which fit writes; leave it out.")

    def before_instantiate_classes(self) -> None:
        """Check the folder of the run, and fall back where the machine has no GPU."""
        settings, overwrite = self.config.trainer, self.config.overwrite
        if begins_again := self.config.ckpt_path == LAST:
            last = last_checkpoint(settings.default_root_dir)
            self.config.ckpt_path = last and str(last)
            # A run that ended before its first checkpoint begins again.
            self.config.overwrite |= last is None and has_no_result(settings.default_root_dir)
        elif self.config.ckpt_path is not None:
            check_checkpoint(Path(self.config.ckpt_path))
        check_run_folder(settings.default_root_dir, self.config.ckpt_path, self.config.overwrite)
        has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
        if settings.accelerator in ("cpu", "tpu") or not has_gpu:
            fitting = precision_on_cpu(settings.precision)
            if fitting != settings.precision:
                what = f"trainer.precision {settings.precision} falls back to {fitting}"
                print(f"warning: the run is on a CPU, so {what}.", file=sys.stderr)
            settings.precision = fitting
        resolved = self.config.clone()
        resolved.ckpt_path, resolved.overwrite = None, False
        texts = (self.parser.dump(resolved, skip_unset=False), resolved.as_dict())
        self.opens_folder = OpenRunFolder(*texts, self.config.ckpt_path is None, overwrite, begins_again)
        for logger in _as_list(settings.logger):
            if isinstance(logger, Namespace) and issubclass(kind := resolve_name(logger.class_path), WandbLogger):
                if kind is WandbLogger:
                    logger.class_path = f"{WandbLog.__module__}.{WandbLog.__name__}"  # which defines metrics
                if logger.init_args.name is None:
                    logger.init_args.name = Path(settings.default_root_dir).resolve().name
                if logger.init_args.save_dir == ".":  # the default
                    logger.init_args.save_dir = settings.default_root_dir

    def instantiate_classes(self) -> None:
        """Instantiate, and pass on the one sentence of a class that refuses its settings."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from error
            if isinstance(error.__cause__, MisconfigurationException):
                raise UserError(f"{first_line(error.__cause__)}.") from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A trainer that always keeps metrics.csv, checkpoints/last.ckpt and model/, and watches for collapse."""
        settings = self.config_init["trainer"]
        folder = Path(settings["default_root_dir"])
        loggers = [logger for logger in _as_list(settings["logger"]) if isinstance(logger, Logger)]
        kwargs["logger"] = [CsvLog(folder), *loggers]
        callbacks: list[Callback] = [self.opens_folder, StopSignals(), *_as_list(settings["callbacks"] or [])]
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str((folder / CHECKPOINTS).resolve())
                callback.save_last = False  # last.ckpt is kept below
        checkpoints = (LastCheckpoint,) if settings["enable_checkpointing"] is not False else ()
        for kind in (*checkpoints, CollapseGuard, SaveModel):
            if not any(isinstance(callback, kind) for callback in callbacks):
                callbacks.append(kind())
        if settings["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(StepProgressBar() if sys.stdout.isatty() else ProgressLines())
        plugins = [plugin for plugin in _as_list(settings["plugins"]) if plugin is not None]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(WholeCheckpoints())
        observe_patiently()
        try:
            return super().instantiate_trainer(callbacks=callbacks, plugins=plugins, **kwargs)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"trainer: {first_line(error)}.") from error


def check_teacher(losses: Sequence[str], has_teacher: bool) -> None:
    """Raise a UserError if ranking losses need a teacher's scores and there are none; warn if nothing needs them."""
    if losses and not has_teacher:
        raise UserError(
            f"model.ranking has {', '.join(losses)}, which learns from a teacher, but the data have none; set "
            "data.teacher to a sentence encoder, or data.score_columns where pairs have been scored."
        )
    if has_teacher and not losses:
        logger.warning("The data have a teacher, but model.ranking names no loss that learns from it, such as kl.")


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def run(arguments: Sequence[str]) -> None:
    """Parse the command line, train, and print the figures; the last line names the model's folder and the main ones.

    Raises:
        UserError: bad input.
    """
    quiet_libraries()
    cli = FitCLI(
        SpladeModule,
        PairsDataModule,
        save_config_callback=None,  # the run's own callback does it
        seed_everything_default=12,
        auto_configure_optimizers=False,
        run=False,
        args=list(arguments),
        parser_kwargs={"prog": "python -m splade_lit.fit", "exit_on_error": False, "allow_abbrev": False},
    )
    _train(cli)
    if not cli.trainer.is_global_zero:
        return
    if not cli.trainer.global_step:
        print("warning: not a step was trained; the saved model is the one that the run started from.", file=sys.stderr)
    after: dict[str, float] = {}
    figures: dict[str, float] = {}
    for callback in callbacks_of(cli.trainer, RetrievalEvaluation):
        print_stages(callback.stages)
        after |= callback.stages.get("after", {})
        figures |= headline_figures(callback.stages.get("after", {}))
    is_whole = cli.model.encoder.pruning == Pruning()  # evaluation sees vectors as they are searched
    for target in cli.model.objective.targets if cli.trainer.global_step else ():
        line, is_missed = target_line(target, after if is_whole else {})
        print(f"warning: {line}" if is_missed else line, file=sys.stderr if is_missed else sys.stdout)
    model_folder = Path(cli.trainer.default_root_dir) / MODEL
    print("  ".join([f"model: {model_folder}", *(f"{name} {value:.4g}" for name, value in figures.items())]))


def target_line(target: Target, after: Mapping[str, float]) -> tuple[str, bool]:
    """What came of a target, in one line, and whether it was missed by more than 10%.

    Measured on the corpora of the final evaluation, by full name, or on the last training batches where there are none.

    >>> from splade_lit.losses.targets import ActiveDimsTarget
    >>> target_line(ActiveDimsTarget(150), {"nq_dot_ndcg@10": 0.5, "nq_corpus_active_dims": 141.0})
    ('target 150 active dims, measured 141 on the documents of nq (-6%)', False)
    """
    sets = by_set(after)
    measured = {name: of[target.figure] for name, of in sets.items() if target.figure in of}
    measured = {name: value for name, value in measured.items() if name.endswith("_mean")} or measured
    if measured:
        value, where = fmean(measured.values()), f"on the documents of {', '.join(measured)}"
    else:
        value, where = float(target.figures["measured"]), "on the last training batches"
    off = value / target.wanted - 1
    line = f"target {target.wanted:g} {target.unit}, measured {value:.4g} {where} ({off:+.0%})"
    is_missed = abs(off) > _MISSED
    return f"{line}; docs/sparsity.md says how near runs come" if is_missed else line, is_missed


def _train(cli: FitCLI) -> None:
    """Train; a run that stops before its end says how to go on with it."""
    trainer, checkpoint = cli.trainer, cli.config.ckpt_path
    if checkpoint is not None:
        check_same_model(Path(checkpoint), cli.model)
    check_precision(trainer.precision)
    check_accumulation(trainer.callbacks)  # type: ignore[attr-defined]
    has_held_out = bool(cli.datamodule.num_eval_pairs and trainer.limit_val_batches)
    check_watched(trainer, cli.model.logged_names, has_held_out)
    check_teacher(cli.model.objective.teacher_losses, cli.datamodule.has_teacher)
    try:
        trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except UserError:
        raise
    except MisconfigurationException as error:
        raise UserError(f"{first_line(error)}.") from error
    except BaseException as error:
        if not trainer.is_global_zero and isinstance(error, (SystemExit, KeyboardInterrupt)):
            sys.exit(0)  # with another code Lightning would kill rank 0, which may be saving still
        for last in callbacks_of(trainer, LastCheckpoint):
            if last.step and trainer.is_global_zero:
                print(
                    f"The run was stopped; go on after step {last.step} with: python -m splade_lit.fit "
                    f"--config {Path(trainer.default_root_dir) / CONFIG} --ckpt_path {last.path}",
                    file=sys.stderr,
                )
        if lost_process(error):
            lost = "another process of the run has ended or does not answer"
            print(f"error: {lost}, so that this one cannot go on; the log says why.", file=sys.stderr)
            sys.exit(1 if trainer.is_global_zero else 0)
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None  # Lightning has shut down and would exit with code 1
        raise
    finally:
        if trainer.state.status == TrainerStatus.INTERRUPTED and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # rank 0 has saved; others may wait for it for ever
        for signals in callbacks_of(trainer, StopSignals):
            signals.restore()
        cli.opens_folder.release()
