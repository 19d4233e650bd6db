"""The LightningModule: the encoder, its loss, its two optimizer groups and what it logs."""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor

from splade_lit.core.distributed import gather_rows
from splade_lit.core.errors import UserError
from splade_lit.core.ranges import check_choice, check_range
from splade_lit.core.tokens import PairBatch
from splade_lit.data.loader import batches_of_step, in_whole_steps
from splade_lit.encoder.body.micro_batches import encode_in_micro_batches
from splade_lit.encoder.body.recompute import Recompute, set_recompute
from splade_lit.encoder.body.sparse_head import Activation, Pooling
from splade_lit.encoder.condition import condition_figures
from splade_lit.encoder.start import CORPUS_IDF, TrainingCorpus, set_start, untrained_encoder
from splade_lit.losses.objective import Losses, Objective, RankingName
from splade_lit.losses.part import Step
from splade_lit.losses.penalties import Penalty, PenaltyName, as_penalties
from splade_lit.losses.ranking import RankingLoss
from splade_lit.losses.weights import Schedule, Weight
from splade_lit.training.divergence import DivergenceWatch
from splade_lit.training.optimizer import make_optimizer, set_rates
from splade_lit.training.run_checks import check_accumulation, check_precision, check_same_checkpoint

logger = logging.getLogger(__name__)

_OF_BASE_MODEL = ("base_model", "base_revision", "trust_remote_code")


class SpladeModule(L.LightningModule):
    """Trains an asymmetric inference-free SPLADE encoder. The defaults are the reference recipe.

    Args:
        base_model: Hub id, folder, or `package:NAME/FOLDER` (a folder inside an installed Python package) of a masked-
            language model, of another encoder of its kind, which then gets a masked-LM head, or of a model with a query
            table (saved here, or another inference-free one), which goes on from where it is.
        base_revision: branch, tag or commit of the base model on the Hub.
        idf: first query weights: `ones`, `corpus` (IDF of the training documents), `model` (the table of the base
            model), or the path of an idf.json; if not given, `model` where the base model has a table, else `ones`.
        freeze_idf: keep the query weights as they start.
        nonnegative_idf: set negative query weights to 0 after every optimizer step (search engines refuse them).
        max_query_tokens: tokens a query is cut to; the base model's limit if not given.
        max_document_tokens: tokens a document is cut to, special tokens included; the base model's limit if not given.
        max_query_active_dims: keep so many weights of a query where it is searched with, the largest; training sees
            all. The base model's limit if not given, as with the next three; 0 for all.
        max_document_active_dims: keep so many weights of a document where it is searched, likewise (docs/sparsity.md).
        min_document_weight: drop weights of a document below this, likewise.
        min_document_weight_share: drop weights of a document below this share (0 to 1) of its largest one, likewise.
        pooling: of logits over the tokens of a document, `max` or `sum`; if not given, the base model's, else `max`.
        activation: `relu` for log1p(relu(x)), `log1p_relu` for a second log1p on top; if not given, the base model's
            where it has a query table, else `relu`.
        packed: run documents without padding where the model allows it.
        dropout: everywhere in the transformer; the base model's if not given. Short runs learn faster without.
        start_active_dims: mean active dims of a document to start from, reached by setting the decoder bias; `auto` for
            200 where documents would start dense, without active dims, or all alike. If not given, grafted heads start
            from 200, other models as they are.
        learning_rate: peak learning rate of the transformer; 0 keeps it as it starts.
        idf_learning_rate: peak learning rate of the query weights, and of parameters that parts of the loss have.
        weight_decay: AdamW's weight decay of the transformer; query weights have none.
        warmup_ratio: fraction of all optimizer steps over which learning rates rise to their peak.
        ranking: ranking losses, whose weighted sum is trained on: `in_batch`, `kl` and `margin_mse` (both learn from a
            teacher's scores, which `data` gives), or classes by their `class_path`.
        penalty: penalty on activations: `flops`, `l1`, `df_flops`, `anti_zero`, a class by its `class_path`, or a list
            of such, which are summed; those without a `weight` of their own share `lambda_d`, or the target's.
        flops_idf_power: power of the query weights that the penalty `flops` is taken times in each dim; above 0 rare
            terms cost more, below 0 common ones.
        l0_threshold: leave documents with this many active dims or fewer out of the penalty; none if not given.
        target_active_dims: mean active dims of a document that a controller aims at, which decides the penalty's
            weight, in place of `lambda_d`; docs/sparsity.md says how near it comes.
        target_flops: mean dims that a query and a document share, likewise.
        lambda_d: weight of the penalty on documents: a number, or a class that decides it step by step; 0.003 if
            neither it nor a target is given.
        lambda_q: weight of the penalty on queries: a number or a class.
        lambda_schedule: how weights that are numbers rise to them: `quadratic`, `linear` or `constant`.
        lambda_ramp_ratio: fraction of all optimizer steps until they are reached.
        micro_batch_size: documents encoded at a time, in training and validation; the gradients are those of the whole
            batch, the memory is that of so many documents beside the vectors of all, and the transformer runs forward
            twice. All at once if not given.
        recompute: what the backward pass makes again instead of keeping it: `nothing`, `cheap` (what takes much memory
            and little time), or `layers` (all of each layer: least memory, most time); never of the last layer. If not
            given, `cheap` on a CPU and `nothing` on a GPU.
        compile_body: run the body through torch.compile.
        trust_remote_code: run code that comes with the base model.

    Raises:
        UserError: the base model or the IDF table cannot be loaded, or a setting is out of range.
    """

    def __init__(
        self,
        base_model: str = "distilbert/distilbert-base-uncased",
        base_revision: str | None = None,
        idf: str | None = None,
        freeze_idf: bool = False,
        nonnegative_idf: bool = False,
        max_query_tokens: int | None = None,
        max_document_tokens: int | None = None,
        max_query_active_dims: int | None = None,
        max_document_active_dims: int | None = None,
        min_document_weight: float | None = None,
        min_document_weight_share: float | None = None,
        pooling: Pooling | None = None,
        activation: Activation | None = None,
        packed: bool = True,
        dropout: float | None = None,
        start_active_dims: int | Literal["auto"] | None = None,
        learning_rate: float = 2e-5,
        idf_learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_ratio: float = 0.1,
        ranking: Sequence[RankingLoss | RankingName] = ("in_batch",),
        penalty: PenaltyName | Penalty | Sequence[PenaltyName | Penalty] = "flops",
        flops_idf_power: float = 0.0,
        l0_threshold: int | None = None,
        target_active_dims: int | None = None,
        target_flops: float | None = None,
        lambda_d: float | Weight | None = None,
        lambda_q: float | Weight = 0.0,
        lambda_schedule: Schedule = "quadratic",
        lambda_ramp_ratio: float = 1 / 3,
        micro_batch_size: int | None = None,
        recompute: Recompute | None = None,
        compile_body: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        check_range("model", 0, 1, warmup_ratio=warmup_ratio, dropout=dropout)
        check_range("model", 0, learning_rate=learning_rate, idf_learning_rate=idf_learning_rate)
        check_range("model", 0, weight_decay=weight_decay)
        check_range("model", 1, max_query_tokens=max_query_tokens, max_document_tokens=max_document_tokens)
        check_range("model", 1, start_active_dims=None if isinstance(start_active_dims, str) else start_active_dims)
        check_range("model", 1, micro_batch_size=micro_batch_size)
        check_range("model", 0, max_query_active_dims=max_query_active_dims)
        check_range("model", 0, max_document_active_dims=max_document_active_dims)
        check_range("model", 0, min_document_weight=min_document_weight)
        check_range("model", 0, 1, min_document_weight_share=min_document_weight_share)
        for name, value, kind in (
            ("pooling", pooling, Pooling),
            ("activation", activation, Activation),
            ("lambda_schedule", lambda_schedule, Schedule),
            ("start_active_dims", start_active_dims, Literal["auto"]),
            ("recompute", recompute, Recompute),
            *(("penalty", one, PenaltyName) for one in as_penalties(penalty)),
            *(("ranking", one, RankingName) for one in ranking),
        ):
            if isinstance(value, str):
                check_choice(f"model.{name}", value, get_args(kind))
        self.objective = Objective(
            ranking,
            penalty,
            lambda_d,
            lambda_q,
            lambda_schedule,
            lambda_ramp_ratio,
            l0_threshold,
            target_active_dims,
            target_flops,
            flops_idf_power,
        )
        # Checkpoints have weights of modules, and settings as plain values.
        self.save_hyperparameters(ignore=list(self.objective.settings))
        self.save_hyperparameters(self.objective.settings)
        self.encoder = untrained_encoder(self.hparams)
        if compile_body:
            try:
                torch.compile(torch.neg)(torch.zeros(2))
            except RuntimeError as error:
                raise UserError(
                    "model.compile_body needs a C++ compiler that torch.compile finds, as g++ is; install one or leave "
                    "it off."
                ) from error
            self.encoder.document.model.compile()
        check_range("model", 1, self.encoder.vocab_size, target_active_dims=target_active_dims)
        if freeze_idf and idf != CORPUS_IDF:
            self.objective.check_frozen(self.encoder.idf_weights)
        self.objective.prepare(self.encoder.vocab_size)
        self.divergence = DivergenceWatch()
        self.condition = torch.full((4,), torch.nan)  # of the latest batch
        self._before_step: dict[str, Tensor] = {}  # what the objective keeps from step to step
        self._seed = torch.initial_seed()
        self._has_started = False

    def setup(self, stage: str) -> None:
        """Set what the training corpus decides: first query weights, decoder bias; and what the device decides."""
        if stage != "fit":
            return
        check_precision(self.trainer.precision)
        check_accumulation(self.trainer.callbacks)  # type: ignore[attr-defined]
        check_same_checkpoint(self.trainer.ckpt_path)
        self.divergence.scaled = self._scaled
        if not self._has_started:  # another fit goes on with what is learned
            corpus = cast(TrainingCorpus, self.trainer.datamodule)  # type: ignore[attr-defined]
            start = set_start(self.encoder, corpus, self.hparams["idf"], self.hparams["start_active_dims"])
            logger.info("%s", start)
            if warning := start.warning(self.encoder.vocab_size, self.objective.target_active_dims):
                logger.warning("%s: %s", self.hparams["base_model"], warning)
            self._has_started = True
        default: Recompute = "cheap" if self.trainer.strategy.root_device.type == "cpu" else "nothing"
        set_recompute(self.encoder.document.model, self.hparams["recompute"] or default)
        self.encoder.document.train()

    def document_vectors(self, batch: PairBatch) -> Tensor:
        """Vectors of all documents of a batch, fp32 `[documents, vocab]`, encoded `micro_batch_size` at a time.

        Where several processes share the batch, each encodes its part and gets the vectors of the others, so that loss,
        penalties and all that the objective measures are of the whole batch.
        """
        vectors = encode_in_micro_batches(self.encoder.document, batch.documents, self.hparams["micro_batch_size"])
        return vectors if batch.shares is None else gather_rows(vectors, batch.shares)

    def losses(self, batch: PairBatch, documents: Tensor) -> Losses:
        """The loss of a batch and its parts, from the vectors of its documents, fp32 `[documents, vocab]`."""
        # Scores, losses and penalties stay in fp32 whatever the precision of the run.
        with torch.autocast(documents.device.type, enabled=False):
            step = Step(
                scores=self.encoder.query.scores(batch.queries, documents),
                answers=batch.answers,
                documents=documents,
                mean_query=self.encoder.query.mean_embedding(batch.queries),
                step=self.global_step,
                total_steps=self.total_steps,
                teacher_scores=batch.teacher_scores,
                idf_weights=self.encoder.idf_weights,
            )
            return cast(Losses, self.objective(step))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run; those done outside of one. A `UserError` where it has no known end."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            return max(self.global_step, 1)
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError("The run has no known end; set trainer.max_steps or trainer.max_epochs for its schedules.")
        return int(steps)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Loss of a batch; logs its parts, the penalty's weight, learning rates and active dims."""
        documents = self.document_vectors(batch)
        losses = self.losses(batch, documents)
        self.divergence.observe(losses.loss, self.global_step + 1)
        self.condition = condition_figures(documents.detach())
        groups = self.optimizers(use_pl_optimizer=False).param_groups  # type: ignore[union-attr]
        values: dict[str, Any] = {
            **{f"train/{name}": value for name, value in (losses.values | losses.weights | losses.figures).items()},
            "train/loss": losses.loss,
            "sparsity/train_query_active_dims": self.encoder.query.active_dims(batch.queries),
            "sparsity/train_document_active_dims": self.condition[0],
            **{f"train/learning_rate_{group['name']}": group["lr"] for group in groups},
        }
        # Tensors only, numbers in the host's memory, so that nothing waits for the device: Lightning would copy a float
        # there, and reads tensors when it writes a row.
        self.log_dict({name: torch.as_tensor(value).detach() for name, value in values.items()})
        accumulated = self.trainer.accumulate_grad_batches  # what Lightning divides by, however many there are
        return losses.loss * (accumulated / batches_of_step(batch_idx, accumulated, self.trainer.num_training_batches))

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Loss of held-out pairs, with the penalty's weight of the moment, and the active dims of their documents."""
        documents = self.document_vectors(batch)
        losses = self.losses(batch, documents)
        values = {f"val/{name}": losses.values[name] for name in self.objective.ranking_losses}
        values |= {"val/loss": losses.loss, "val/document_active_dims": (documents > 0).sum(1).float().mean()}
        self.log_dict(values, batch_size=len(batch.queries), sync_dist=True)

    @property
    def logged_names(self) -> set[str]:
        """Names of all metrics that it logs, which callbacks may watch; those under `val/` need held-out pairs."""
        rates = [f"learning_rate_{group['name']}" for group in self.parameter_groups()]
        names = {f"train/{name}" for name in ("loss", *self.objective.logged_names, *rates)}
        names |= {f"val/{name}" for name in ("loss", "document_active_dims", *self.objective.ranking_losses)}
        return names | {f"sparsity/train_{side}_active_dims" for side in ("query", "document")}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """AdamW's groups `idf`, `transformer` and `loss`: each trainable parameter is in one, and no group is empty."""
        settings = self.hparams
        groups = [
            {"name": name, "params": _trainable(module), "lr": settings[rate], "weight_decay": decay}
            for name, module, rate, decay in (
                ("idf", self.encoder.query, "idf_learning_rate", 0.0),
                ("transformer", self.encoder.document, "learning_rate", settings["weight_decay"]),
                ("loss", self.objective, "idf_learning_rate", 0.0),
            )
        ]
        grouped = sorted(id(parameter) for group in groups for parameter in group["params"])
        assert grouped == sorted(map(id, _trainable(self))), "groups must hold every trainable parameter once"
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> Any:
        """AdamW over the groups; learning rates rise linearly, then fall linearly to 0, by optimizer steps."""
        ratio, steps = self.hparams["warmup_ratio"], self.total_steps
        return make_optimizer(self.parameter_groups(), ratio, steps, self._scaled)

    def on_train_start(self) -> None:
        """Go on at the rates of the settings, where a checkpoint's were others."""
        if self.trainer.ckpt_path:
            set_rates(self.optimizers(use_pl_optimizer=False), self.lr_schedulers(), self.parameter_groups())

    @property
    def _scaled(self) -> bool:
        """Whether a GradScaler scales the loss."""
        return self.trainer.precision == "16-mixed"

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Have an update left out whose gradients are not finite: it would spoil all weights."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        lost = self.divergence.lost(gradients, self.global_step + 1)
        if not self._scaled:
            optimizer.found_inf = lost  # type: ignore[attr-defined]  # read by torch's fused AdamW

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip as Lightning does, whose mixed precision refuses fused optimizers even where nothing is scaled."""
        algorithm = gradient_clip_algorithm or GradClipAlgorithmType.NORM
        Precision.clip_gradients(self.trainer.precision_plugin, optimizer, gradient_clip_val or 0.0, algorithm)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """One optimizer step, then the projection of the query weights; what is not finite is told now and then."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # Lightning would keep the gradients through the next forward pass, where activations need the memory.
        optimizer.zero_grad()
        if self.hparams["nonnegative_idf"]:
            self.encoder.query.project_nonnegative()
        step = self.global_step + 1
        due = step % (self.trainer.log_every_n_steps or 50) == 0 or step == self.total_steps  # type: ignore[attr-defined]
        if (due or self.device.type == "cpu") and (news := self.divergence.read()):
            logger.warning("%s", news)
        if due:
            self.divergence.check(self.parameters(), step)

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Draw dropout from seed, device, step and batch, so that a resumed run has that of one without a stop.

        Parts of the loss may draw from NumPy's and Python's generators too.
        """
        place = (self._seed, self.global_rank, self.global_step, batch_idx)
        seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._before_step = {name: buffer.clone() for name, buffer in self.objective.named_buffers()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the seed; where training has diverged nothing is saved: a checkpoint of before is worth more.

        In the middle of an optimizer step, of which gradients are not saved, the state is that of before the step.
        """
        self.divergence.check(self.parameters(), self.global_step)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        current = progress["current"]
        done, per_epoch = current["processed"], self.trainer.num_training_batches
        begun = done - in_whole_steps(done, self.trainer.accumulate_grad_batches, per_epoch)
        for counts in (current, progress["total"]):
            counts.update({name: count - begun for name, count in counts.items()})
        if begun or current["started"] > current["processed"]:
            checkpoint["state_dict"] |= {f"objective.{name}": buffer for name, buffer in self._before_step.items()}
        checkpoint["seed"] = self._seed
        checkpoint["divergence"] = self.divergence.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the seed and check what was trained; parts of the loss that it does not know stay as they start."""
        self._seed = checkpoint.get("seed", self._seed)
        if "divergence" in checkpoint:
            self.divergence.load_state_dict(checkpoint["divergence"])
        sizes = [len(group["params"]) for group in self.parameter_groups()]
        for optimizer in checkpoint.get("optimizer_states", ()):
            if sizes != [len(group["params"]) for group in optimizer["param_groups"]]:
                raise UserError("The checkpoint's run trained other weights; resume with the config.yaml of its run.")
        if changed := self._changed_settings(checkpoint.get("hyper_parameters", {})):
            logger.warning("Resuming with other settings than the checkpoint's run: %s.", ", ".join(changed))
        saved = checkpoint["state_dict"]
        ours = {f"objective.{name}": state for name, state in self.objective.state_dict().items()}
        theirs = {name: saved.pop(name) for name in list(saved) if name.startswith("objective.")}
        theirs.setdefault("objective.penalty_scale", ours["objective.penalty_scale"])  # earlier versions have none
        if {n: s.shape for n, s in ours.items()} != {n: s.shape for n, s in theirs.items()}:
            logger.warning("The checkpoint is of another loss, so that what is learned of the loss starts again.")
            theirs = ours
        saved.update(theirs)

    def _changed_settings(self, before: Mapping[str, Any]) -> list[str]:
        """Settings that the checkpoint's run had otherwise, as they are and were; where its base model was is none."""
        now = {name: self.hparams[name] for name in before if name in self.hparams and name not in _OF_BASE_MODEL}
        return [f"model.{name} {value} (was {before[name]})" for name, value in now.items() if value != before[name]]


def _trainable(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
