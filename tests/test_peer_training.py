"""Training: the loss, gradients and steps of sentence-transformers' trainer, on the same base model and batches."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_runs import NEGATIVES, make_data, make_trainer, named_weights, save_base, write_pairs
from torch import Tensor

from splade_lit.data.datamodule import PairsDataModule
from splade_lit.data.sampler import NoDuplicatesBatchSampler
from splade_lit.training.module import SpladeModule

pytest.importorskip("sentence_transformers")

from sentence_transformers import SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 20
LEARNING_RATE = 1e-3
IDF_LEARNING_RATE = 1e-2
ABOUT_HALF = {"distilbert": 80, "bert": 33}  # active dims that half of the documents stay within


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in one order on both sides: split over threads, they differ by about as much as is allowed here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_module(base: Path, **settings: Any) -> SpladeModule:
    """A module on a base model whose query weights differ, some of them negative."""
    module = SpladeModule(str(base), **settings)
    module.encoder.idf_weights.data.uniform_(-0.5, 3, generator=torch.Generator().manual_seed(0))
    return module


def peer_model(base: Path, module: SpladeModule) -> SparseEncoder:
    """The model that sentence-transformers makes of the same base, with the query weights of a module."""
    transformer = Transformer(str(base), transformer_task="fill-mask")
    document = module.encoder.document
    pooling = SpladePooling(document.pooling, activation_function=document.activation)
    query = SparseStaticEmbedding(transformer.tokenizer, module.encoder.idf_weights.detach().clone())
    return SparseEncoder(modules=[Router.for_query_document([query], [transformer, pooling])], device="cpu")


def peer_parameters(model: SparseEncoder) -> dict[str, torch.nn.Parameter]:
    """Parameters under the names of `named_weights`."""
    router = model[0].sub_modules
    body = dict(router["document"][0].model.named_parameters())
    return body | {"idf_weights": router["query"][0].weight}


def peer_texts(data: PairsDataModule, rows: Any) -> list[list[str]]:
    """The texts of a batch, a list a column."""
    pairs = [data.train_pairs[int(row)] for row in rows]
    return [[pair[column] for pair in pairs] for column in data.train_pairs.columns]


@dataclass
class Record(L.Callback):
    """Gradients and logged figures of every step, before clipping."""

    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    figures: list[dict[str, float]] = field(default_factory=list)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        with pl_module.encoder.document.whole_model() as model:
            parameters = dict(model.named_parameters()) | {"idf_weights": pl_module.encoder.idf_weights}
            self.gradients.append({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})
        self.figures.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def norms(self) -> list[float]:
        return [float(torch.cat([g.flatten() for g in step.values()]).norm()) for step in self.gradients]


def split_key_biases(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of all parameters but the biases of attention keys, and of those.

    Softmax does not see that bias: its gradient is rounding alone, of which Adam makes steps of any direction.
    """
    biases = {name: tensor for name, tensor in tensors.items() if name.endswith(("k_lin.bias", "key.bias"))}
    assert biases
    return {name: tensor for name, tensor in tensors.items() if name not in biases}, biases


def assert_close(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Each tensor equal within a share of its own norm."""
    assert ours.keys() == expected.keys()
    for name in expected:
        assert (ours[name] - expected[name]).norm() <= tolerance * expected[name].norm(), name


@pytest.fixture
def pairs(tmp_path, tiny_tokenizer) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer)


@pytest.mark.parametrize("negatives", [(), NEGATIVES], ids=["pairs", "hard negatives"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lambda_q": 0.02},
        {"l0_threshold": ABOUT_HALF},
        {"pooling": "sum", "activation": "log1p_relu"},
        {"packed": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["distilbert", "bert"])
def test_loss_and_gradients(make_masked_lm, tiny_tokenizer, tmp_path, pairs, architecture, settings, negatives):
    base = save_base(tmp_path / "base", make_masked_lm(architecture, len(tiny_tokenizer)), tiny_tokenizer)
    settings = {"lambda_d": 0.05, "lambda_schedule": "constant"} | settings
    if "l0_threshold" in settings:
        settings["l0_threshold"] = ABOUT_HALF[architecture]
    module, data, record = make_module(base, **settings), make_data(base, pairs, negatives), Record()
    model = peer_model(base, module)
    make_trainer(tmp_path, max_steps=1, callbacks=[record]).fit(module, data)

    columns = peer_texts(data, data.train_dataloader().sampler.batches()[0])
    model.train()
    features = [model.preprocess(columns[0], task="query")]
    features += [model.preprocess(texts, task="document") for texts in columns[1:]]
    loss = SpladeLoss(
        model,
        SparseMultipleNegativesRankingLoss(model),
        document_regularizer_weight=settings["lambda_d"],
        query_regularizer_weight=settings.get("lambda_q"),
        document_regularizer_threshold=settings.get("l0_threshold"),
    )
    parts = loss(features)
    sum(parts.values()).backward()

    figures = record.figures[0]
    ours = {
        "base_loss": figures["train/ranking_loss"],
        "document_regularizer_loss": settings["lambda_d"] * figures["train/document_penalty"],
        "query_regularizer_loss": settings.get("lambda_q", 0) * figures.get("train/query_penalty", 0),
    }
    assert {name: ours[name] for name in parts} == pytest.approx({n: float(p) for n, p in parts.items()}, rel=1e-5)
    assert figures["train/loss"] == pytest.approx(float(sum(parts.values())), rel=1e-5)
    assert min(ours[name] for name in parts) > 0.001
    if "l0_threshold" in settings:
        documents = module.encoder.encode_document([text for texts in columns[1:] for text in texts]).to_dense()
        masked = (documents > 0).sum(1) <= settings["l0_threshold"]
        assert 0 < masked.sum() < len(masked)
    ours, key_biases = split_key_biases(record.gradients[0])
    expected, _ = split_key_biases({n: p.grad for n, p in peer_parameters(model).items() if p.grad is not None})
    # A query weight's gradient is a sum of document weights that nearly cancel: it has their rounding, not its own.
    documents = module.encoder.encode_document([text for texts in columns[1:] for text in texts]).to_dense()
    rounding = 2 * torch.finfo(torch.float32).eps * documents.max()
    error = (ours.pop("idf_weights") - (of_table := expected.pop("idf_weights"))).norm()
    assert error <= 1e-5 * of_table.norm() + rounding
    assert_close(ours, expected, 1e-5)
    assert max(float(bias.abs().max()) for bias in key_biases.values()) < 1e-5


class SameBatches(DefaultBatchSampler):
    """The batches of our sampler, epoch by epoch."""

    def __init__(self, ours: NoDuplicatesBatchSampler) -> None:
        super().__init__(range(1), batch_size=ours.batch_size, drop_last=False)
        self.ours = ours

    def __len__(self) -> int:
        return len(self.ours)

    def __iter__(self) -> Iterator[list[int]]:
        self.ours.set_epoch(self.epoch)
        yield from (batch.tolist() for batch in self.ours.batches())


def train_peer(
    model: SparseEncoder, data: PairsDataModule, folder: Path, lambda_d: float, lambda_q: float
) -> SparseEncoderTrainer:
    """Train a model with sentence-transformers' trainer on our batches."""
    sampler = data.train_dataloader().sampler
    arguments = SparseEncoderTrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=sampler.batch_size,
        learning_rate=LEARNING_RATE,
        learning_rate_mapping={r"sub_modules\.query\.0\.weight": IDF_LEARNING_RATE},
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        max_grad_norm=1.0,
        batch_sampler=lambda *args, **settings: SameBatches(sampler),
        router_mapping={column: "query" if column == "query" else "document" for column in data.train_pairs.columns},
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
    )
    ranking = SparseMultipleNegativesRankingLoss(model)
    trainer = SparseEncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=data.train_pairs.dataset,
        loss=SpladeLoss(model, ranking, document_regularizer_weight=lambda_d, query_regularizer_weight=lambda_q),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("negatives", [(), NEGATIVES], ids=["pairs", "hard negatives"])
@pytest.mark.parametrize("architecture", ["distilbert", "bert"])
def test_steps_in_lockstep(make_masked_lm, tiny_tokenizer, tmp_path, pairs, architecture, negatives):
    base = save_base(tmp_path / "base", make_masked_lm(architecture, len(tiny_tokenizer)), tiny_tokenizer)
    lambdas = {"lambda_d": 0.1, "lambda_q": 0.02}
    module = make_module(base, learning_rate=LEARNING_RATE, idf_learning_rate=IDF_LEARNING_RATE, **lambdas)
    model, start = peer_model(base, module), named_weights(module)
    data, record = make_data(base, pairs, negatives), Record()
    lightning = make_trainer(tmp_path, STEPS, callbacks=[record])
    lightning.fit(module, data)
    trainer = train_peer(model, data, tmp_path / "peer", *lambdas.values())

    ours, _ = split_key_biases(named_weights(module))
    expected, _ = split_key_biases({name: p.detach() for name, p in peer_parameters(model).items()})
    assert_close(ours, expected, 1e-4)
    moves = [{name: weights[name] - start[name] for name in ours} for weights in (ours, expected)]
    assert_close(*moves, 1e-3)
    assert min(float(move.norm() / start[name].norm()) for name, move in moves[0].items()) > 1e-4

    log = trainer.state.log_history[:STEPS]
    assert data.train_dataloader().sampler.epoch < lightning.current_epoch  # more than one epoch
    assert [step["train/loss"] for step in record.figures] == pytest.approx([step["loss"] for step in log], rel=1e-5)
    rates = [step["train/learning_rate_transformer"] for step in record.figures]
    assert rates == pytest.approx([step["learning_rate"] for step in log])
    assert record.norms() == pytest.approx([step["grad_norm"] for step in log], rel=1e-4)
    assert max(record.norms()) > 1  # what the clipping is for
    names = ("betas", "eps", "weight_decay", "amsgrad", "initial_lr")
    ours, expected = (
        {tuple(group[name] for name in names) for group in optimizer.param_groups}
        for optimizer in (lightning.optimizers[0], trainer.optimizer)
    )
    assert ours == expected
