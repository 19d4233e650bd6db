"""The LightningModule: the encoder, its loss, its two optimizer groups and what it logs."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from splade_lit.core.errors import UserError
from splade_lit.core.tokens import PairBatch
from splade_lit.encoder.body.recompute import Recompute, set_recompute
from splade_lit.encoder.body.sparse_head import Activation, Pooling
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.start import CORPUS_IDF, TrainingCorpus, set_start
from splade_lit.losses.penalties import PENALTIES, Penalty, l0_mask
from splade_lit.losses.ranking import in_batch_ranking_loss
from splade_lit.losses.weights import Schedule, learning_rate_factor, penalty_factor
from splade_lit.training.divergence import DivergenceWatch

logger = logging.getLogger(__name__)

_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


@dataclass(frozen=True)
class Losses:
    """The loss of a batch and its parts, fp32 scalars.

    Attributes:
        loss: `ranking + lambda_d * document_penalty + lambda_q * query_penalty`.
        ranking: in-batch ranking loss.
        document_penalty: penalty on all document vectors of the batch, without its weight.
        query_penalty: penalty on the query vectors, without its weight; 0 where `lambda_q` is 0.
    """

    loss: Tensor
    ranking: Tensor
    document_penalty: Tensor
    query_penalty: Tensor


class SpladeModule(L.LightningModule):
    """Trains an asymmetric inference-free SPLADE encoder. The defaults are the reference recipe.

    Args:
        base_model: Hub id, folder, or `package:NAME/FOLDER` (a folder inside an installed Python package) of a masked-
            language model, or of any encoder of its kind without a masked-LM head, which then gets one.
        base_revision: branch, tag or commit of the base model on the Hub.
        idf: first query weights: `ones`, `corpus` (IDF of the training documents), or the path of an idf.json.
        freeze_idf: keep the query weights as they start.
        nonnegative_idf: set negative query weights to 0 after every optimizer step (search engines refuse them).
        max_query_tokens: tokens a query is cut to; the tokenizer's limit if not given.
        max_document_tokens: tokens a document is cut to, special tokens included; the tokenizer's limit if not given.
        pooling: how logits are pooled over the tokens of a document, `max` or `sum`.
        activation: `relu` for log1p(relu(x)), `log1p_relu` for a second log1p on top.
        packed: run documents without padding where the model allows it.
        dropout: dropout of the transformer, everywhere; that of the base model if not given. Short runs learn faster
            without, and each step takes less time.
        start_active_dims: mean active dims of a document to start from, reached by setting the decoder bias; grafted
            heads start from 200 if not given, other models as they are.
        learning_rate: peak learning rate of the transformer.
        idf_learning_rate: peak learning rate of the query weights.
        weight_decay: AdamW's weight decay of the transformer; query weights have none.
        warmup_ratio: fraction of all optimizer steps over which learning rates rise to their peak.
        penalty: penalty on activations, `flops` or `l1`.
        lambda_d: weight of the penalty on documents.
        lambda_q: weight of the penalty on queries.
        lambda_schedule: how the weights rise to these values: `quadratic`, `linear` or `constant`.
        lambda_ramp_ratio: fraction of all optimizer steps until they are reached.
        l0_threshold: leave documents with this many active dims or fewer out of the penalty; none if not given.
        recompute: what the backward pass makes again instead of keeping it: `nothing`, `cheap` (what takes much memory
            and little time), or `layers` (all of each layer: least memory, most time); never of the last layer. If not
            given, `cheap` on a CPU and `nothing` on a GPU, where looking at each operation takes longer than most of
            them.
        compile_body: run the body through torch.compile.
        trust_remote_code: run code that comes with the base model.

    Raises:
        UserError: the base model or the IDF table cannot be loaded, or a setting is out of range.
    """

    def __init__(
        self,
        base_model: str = "distilbert/distilbert-base-uncased",
        base_revision: str | None = None,
        idf: str = "ones",
        freeze_idf: bool = False,
        nonnegative_idf: bool = False,
        max_query_tokens: int | None = None,
        max_document_tokens: int | None = None,
        pooling: Pooling = "max",
        activation: Activation = "relu",
        packed: bool = True,
        dropout: float | None = None,
        start_active_dims: int | None = None,
        learning_rate: float = 2e-5,
        idf_learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_ratio: float = 0.1,
        penalty: Penalty = "flops",
        lambda_d: float = 3e-3,
        lambda_q: float = 0.0,
        lambda_schedule: Schedule = "quadratic",
        lambda_ramp_ratio: float = 1 / 3,
        l0_threshold: int | None = None,
        recompute: Recompute | None = None,
        compile_body: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        _check_ranges(self.hparams)
        self.encoder = AsymmetricSparseEncoder.from_base(
            base_model,
            idf="ones" if idf == CORPUS_IDF else idf,
            freeze_idf=freeze_idf,
            max_query_tokens=max_query_tokens,
            max_document_tokens=max_document_tokens,
            pooling=pooling,
            activation=activation,
            packed=packed,
            dropout=dropout,
            revision=base_revision,
            trust_remote_code=trust_remote_code,
        )
        if compile_body:
            _check_compiler()
            self.encoder.document.model.compile()
        self._divergence = DivergenceWatch()
        self._random_state: dict[str, Tensor] | None = None

    def setup(self, stage: str) -> None:
        """Set what the training corpus decides: first query weights, decoder bias; and what the device decides."""
        if stage != "fit":
            return
        check_precision(self.trainer.precision)
        corpus = cast(TrainingCorpus, self.trainer.datamodule)  # type: ignore[attr-defined]
        warning = set_start(self.encoder, corpus, self.hparams["idf"], self.hparams["start_active_dims"])
        if warning:
            logger.warning("%s: %s", self.hparams["base_model"], warning)
        default: Recompute = "cheap" if self.trainer.strategy.root_device.type == "cpu" else "nothing"
        set_recompute(self.encoder.document.model, self.hparams["recompute"] or default)
        self.encoder.document.train()

    def losses(self, batch: PairBatch, documents: Tensor) -> Losses:
        """The loss of a batch and its parts.

        Args:
            batch: the pairs.
            documents: vectors of `batch.documents`, fp32 `[documents, vocab]`.
        """
        # Scores, losses and penalties stay in fp32 whatever the precision of the run.
        with torch.autocast(documents.device.type, enabled=False):
            ranking = in_batch_ranking_loss(self.encoder.query.scores(batch.queries, documents))
            threshold = self.hparams["l0_threshold"]
            penalised = documents if threshold is None else l0_mask(documents, threshold)
            penalty = PENALTIES[self.hparams["penalty"]]
            document_penalty = penalty(penalised)
            lambda_d, lambda_q = self.lambdas
            loss = ranking + lambda_d * document_penalty
            query_penalty = torch.zeros_like(ranking)
            if self.hparams["lambda_q"]:
                query_penalty = penalty(self.encoder.query.mean_embedding(batch.queries)[None])
                loss = loss + lambda_q * query_penalty
        return Losses(loss, ranking, document_penalty, query_penalty)

    @property
    def lambdas(self) -> tuple[float, float]:
        """Weights of the document and the query penalty at this optimizer step."""
        ramp_steps = max(1, int(self.total_steps * self.hparams["lambda_ramp_ratio"]))
        factor = penalty_factor(self.global_step, ramp_steps, self.hparams["lambda_schedule"])
        return factor * self.hparams["lambda_d"], factor * self.hparams["lambda_q"]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run.

        Raises:
            UserError: the run has no end that is known beforehand.
        """
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError(
                "The run has no known end; set trainer.max_steps or trainer.max_epochs (schedules need it)."
            )
        return int(steps)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Loss of a batch; logs its parts, the penalty's weight, learning rates and active dims."""
        documents = self.encoder.document(batch.documents)
        losses = self.losses(batch, documents)
        self._divergence.observe(losses.loss, self.global_step + 1)
        self._log_step(batch, documents, losses)
        return losses.loss

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Loss of held-out pairs, with the penalty's weight of the moment."""
        documents = self.encoder.document(batch.documents)
        losses = self.losses(batch, documents)
        values = {"val/loss": losses.loss, "val/ranking_loss": losses.ranking}
        self.log_dict(values, batch_size=len(batch.queries), sync_dist=True)

    def _log_step(self, batch: PairBatch, documents: Tensor, losses: Losses) -> None:
        # Tensors only, numbers in the host's memory, so that nothing waits for the device: Lightning would copy a float
        # there, and reads tensors when it writes a row.
        lambda_d, lambda_q = self.lambdas
        values: dict[str, Any] = {
            "train/loss": losses.loss,
            "train/ranking_loss": losses.ranking,
            "train/document_penalty": losses.document_penalty,
            "train/lambda_d": lambda_d,
            "sparsity/train_query_active_dims": self.encoder.query.active_dims(batch.queries),
            "sparsity/train_document_active_dims": (documents.detach() > 0).sum() / len(documents),
        }
        if self.hparams["lambda_q"]:
            values |= {"train/query_penalty": losses.query_penalty, "train/lambda_q": lambda_q}
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            values[f"train/learning_rate_{group['name']}"] = group["lr"]
        self.log_dict({name: torch.as_tensor(value).detach() for name, value in values.items()})

    def parameter_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """Trainable parameters by group, `idf` and `transformer`: every one of them, once.

        A frozen IDF table leaves its group empty, and an empty group is left out.
        """
        idf = [p for p in self.encoder.query.parameters() if p.requires_grad]
        transformer = [p for p in self.encoder.document.parameters() if p.requires_grad]
        grouped = [id(p) for p in (*idf, *transformer)]
        trainable = [id(p) for p in self.parameters() if p.requires_grad]
        assert sorted(grouped) == sorted(trainable), "optimizer groups must hold every trainable parameter once"
        return {name: group for name, group in (("idf", idf), ("transformer", transformer)) if group}

    def configure_optimizers(self) -> Any:
        """AdamW over the two groups; learning rates rise linearly, then fall linearly to 0, by optimizer steps."""
        settings: dict[str, dict[str, float]] = {
            "idf": {"lr": self.hparams["idf_learning_rate"], "weight_decay": 0.0},
            "transformer": {"lr": self.hparams["learning_rate"], "weight_decay": self.hparams["weight_decay"]},
        }
        groups = [{"name": name, "params": ps, **settings[name]} for name, ps in self.parameter_groups().items()]
        # Lightning refuses to clip the gradients of the fused form in mixed precision; None lets torch take the next
        # best, where False would take parameters one by one.
        optimizer = torch.optim.AdamW(groups, fused=None if self.trainer.precision.endswith("-mixed") else True)
        total_steps = self.total_steps
        warmup_steps = int(np.ceil(total_steps * self.hparams["warmup_ratio"]))
        scheduler = LambdaLR(optimizer, lambda step: learning_rate_factor(step, warmup_steps, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """One optimizer step, and the projection of the query weights after it.

        Raises:
            UserError: training has diverged; looked for as often as figures are logged.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # Lightning would keep the gradients through the next forward pass, where activations need the memory.
        optimizer.zero_grad()
        if self.hparams["nonnegative_idf"]:
            self.encoder.query.project_nonnegative()
        step = self.global_step + 1
        if step % (self.trainer.log_every_n_steps or 50) == 0 or step == self.total_steps:  # type: ignore[attr-defined]
            self._divergence.check(self.parameters(), step)

    def on_train_start(self) -> None:
        """Go on with the random numbers of the checkpoint, so that dropout is that of a run without a stop."""
        if self._random_state is not None:
            torch.set_rng_state(self._random_state["cpu"])
            if self.device.type == "cuda" and "cuda" in self._random_state:
                torch.cuda.set_rng_state(self._random_state["cuda"], self.device)
            self._random_state = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the random numbers.

        Raises:
            UserError: training has diverged; a checkpoint of before is worth more.
        """
        self._divergence.check(self.parameters(), self.global_step)
        checkpoint["random_state"] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            checkpoint["random_state"]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the random numbers until training starts."""
        self._random_state = checkpoint.get("random_state")


def check_precision(precision: str) -> None:
    """Check that a precision keeps weights, scores and penalties in 32 bits.

    Raises:
        UserError: it does not.
    """
    if precision not in _PRECISIONS:
        raise UserError(f"trainer.precision is {precision}; it must be one of {', '.join(_PRECISIONS)}.")


def _check_compiler() -> None:
    try:
        torch.compile(torch.neg)(torch.zeros(2))
    except RuntimeError as error:
        raise UserError(
            "model.compile_body needs a C++ compiler that torch.compile finds, as g++ is; install one or leave it off."
        ) from error


def _check_ranges(settings: Any) -> None:
    for name in ("warmup_ratio", "lambda_ramp_ratio"):
        if not 0 <= settings[name] <= 1:
            raise UserError(f"model.{name} is {settings[name]}; it is a fraction of all steps, from 0 to 1.")
    for name in ("learning_rate", "idf_learning_rate", "weight_decay", "lambda_d", "lambda_q", "l0_threshold"):
        if settings[name] is not None and not settings[name] >= 0:
            raise UserError(f"model.{name} is {settings[name]}; it cannot be negative.")
    for name in ("max_query_tokens", "max_document_tokens", "start_active_dims"):
        if settings[name] is not None and settings[name] < 1:
            raise UserError(f"model.{name} is {settings[name]}; it must be at least 1.")
