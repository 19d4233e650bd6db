"""The sides of the benchmark, each in a process of its own that works only when it is its turn.

`python scripts/benchmark/sides.py TASK SIDE SETTINGS` reads a line from standard input for each turn and answers with a
line of JSON: the seconds of that turn and, where memory is measured, the peak above the model and the optimizer. The
first turn is to import, load and warm up. `scripts/benchmark` starts these processes and lets them take turns: none
works while another is measured, and whatever else the machine does hits all sides alike. Nothing here is meant to be
called by hand.
"""

import gc
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from floor import MatrixProducts
from search_sides import search
from turns import READY_STEPS, StepTurns, Turns

LAMBDA_D = 3e-3


@dataclass(frozen=True)
class Recipe:
    """What all sides train: the reference recipe on the same batches."""

    base: str
    pairs: str
    max_tokens: int  # that a document is cut to
    cache: str  # folder for what is cached or written
    pairs_per_step: int = 16
    precision: str = "32-true"  # Lightning's name
    max_steps: int = -1  # one epoch
    seed: int = 42  # of dropout and of the order of batches

    def data(self) -> Any:
        """The DataModule."""
        from splade_lit.data.datamodule import PairsDataModule

        return PairsDataModule(
            self.base,
            self.pairs,
            num_eval_pairs=0,
            batch_size=self.pairs_per_step,
            max_document_tokens=self.max_tokens,
            seed=self.seed,
            cache_dir=self.cache,
        )

    def batches(self) -> tuple[Any, list[list[int]]]:
        """The DataModule, and its batches as row numbers."""
        data = self.data()
        data.setup()
        return data, [batch.tolist() for batch in data.train_dataloader().sampler.batches()]


def fit_ours(recipe: Recipe, step_done: Callable[[Any], bool] = lambda model: True) -> list[float]:
    """Losses of the steps of `SpladeModule` and `PairsDataModule` under Lightning's trainer.

    `step_done` is called with the model after each optimizer step; training stops where it says False.
    """
    import lightning as L

    from splade_lit.training.module import SpladeModule

    losses = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *args: Any) -> None:
            losses.append(float(outputs["loss"]))
            trainer.should_stop = not step_done(module)

    L.seed_everything(recipe.seed)
    trainer = L.Trainer(
        devices=1,
        precision=recipe.precision,
        max_epochs=1,
        max_steps=recipe.max_steps,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Watch()],
        default_root_dir=recipe.cache,
    )
    module = SpladeModule(recipe.base, max_document_tokens=recipe.max_tokens, lambda_d=LAMBDA_D)
    trainer.fit(module, recipe.data())
    return losses


def fit_peer(recipe: Recipe, step_done: Callable[[Any], bool] = lambda model: True) -> list[float]:
    """The same of sentence-transformers' own trainer, as its documentation trains such a model, on the same batches."""
    from sentence_transformers import SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
    from transformers import TrainerCallback

    data, batches = recipe.batches()
    transformer = Transformer(recipe.base, transformer_task="fill-mask")
    transformer.max_seq_length = recipe.max_tokens
    query = SparseStaticEmbedding(transformer.tokenizer)
    model = SparseEncoder(modules=[Router.for_query_document([query], [transformer, SpladePooling("max")])])
    model.max_seq_length = recipe.max_tokens

    class SameBatches(DefaultBatchSampler):
        def __iter__(self) -> Iterator[list[int]]:
            yield from batches

        def __len__(self) -> int:
            return len(batches)

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not step_done(model):  # it may be set already, at the last step
                control.should_training_stop = True

    size = recipe.pairs_per_step
    arguments = SparseEncoderTrainingArguments(
        output_dir=recipe.cache,
        seed=recipe.seed,
        num_train_epochs=1,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=size,
        learning_rate=2e-5,
        learning_rate_mapping={r"sub_modules\.query\.0\.weight": 1e-3},
        warmup_steps=0.1,
        batch_sampler=lambda *args, **settings: SameBatches(range(1), batch_size=size, drop_last=False),
        router_mapping={"query": "query", "document": "document"},
        fp16=recipe.precision == "16-mixed",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    loss = SpladeLoss(model, SparseMultipleNegativesRankingLoss(model), document_regularizer_weight=LAMBDA_D)
    dataset = data.train_pairs.dataset
    trainer = SparseEncoderTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[Watch()])
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


FIT = {"ours": fit_ours, "peer": fit_peer}


def train(turns: Turns, side: str, **settings: Any) -> None:
    """Training steps; the floor: forward and backward of the body, forward of the decoder."""
    recipe = Recipe(**settings)
    if side != "floor":
        FIT[side](recipe, StepTurns(turns).step_done)
        return
    data, batches = recipe.batches()
    rows = islice(batches, READY_STEPS - 1, None)  # `timed` gets ready with one: the turns have the trainers' batches
    products = MatrixProducts(recipe.base)

    def work() -> None:
        lengths = data.documents[0].gather(data.train_rows[next(rows)]).lengths
        products.body(lengths, backward=True)
        products.decoder(sum(lengths))

    turns.timed(work)


def largest_batch(turns: Turns, side: str, memory_gib: float, **settings: Any) -> None:
    """The most pairs of which two steps run in so much memory of a GPU, to an eighth."""
    recipe = Recipe(max_steps=2, **settings)
    torch.cuda.set_per_process_memory_fraction(memory_gib * (1 << 30) / torch.cuda.mem_get_info()[1])

    def fits(pairs: int) -> bool:
        try:
            FIT[side](replace(recipe, pairs_per_step=pairs))
        except torch.OutOfMemoryError:
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        return True

    size = 16
    while fits(2 * size):
        size *= 2
    for step in (size // 2, size // 4, size // 8):
        if fits(size + step):
            size += step
    turns.timed(lambda: None, pairs=size)


def encode(turns: Turns, side: str, kind: str, model: str, texts: str, chunk: int) -> None:
    """`encode_document` or `encode_query` of chunks of the texts of a JSON file, from the start again at its end."""
    every = json.loads(Path(texts).read_text(encoding="utf-8"))
    chunks = ([every[(start + i) % len(every)] for i in range(chunk)] for start in count(0, chunk))
    if side != "floor":
        run = getattr(_load(side, model), f"encode_{kind}")
        turns.timed(lambda: run(next(chunks)))
        return
    encoder, products = _load("ours", model), MatrixProducts(f"{model}/document_0_MLMTransformer")
    lengths = ([len(ids) for ids in encoder.tokenisation.documents(batch)] for batch in chunks)

    def work() -> None:
        numbers = sorted(next(lengths))
        # In batches of about 4,096 tokens, as packed.
        while numbers:
            batch = [numbers.pop()]
            while numbers and sum(batch) + numbers[-1] <= 4096:
                batch.append(numbers.pop())
            products.body(batch, backward=False)
            products.decoder(sum(batch))

    turns.timed(work)


def evaluate(turns: Turns, side: str, model: str, folder: str) -> None:
    """Load model and sets, evaluate; the whole process is what is timed."""
    encoder = _load(side, model)
    if side == "ours":
        from splade_lit.data.tasks import load_tasks
        from splade_lit.evaluation.task_evaluation import evaluate_tasks

        metrics = evaluate_tasks(encoder, load_tasks([folder]))
    else:
        from sentence_transformers.sparse_encoder.evaluation import SparseNanoBEIREvaluator

        names = [path.stem.removeprefix("Nano").lower() for path in sorted(Path(folder, "corpus").glob("*.parquet"))]
        metrics = SparseNanoBEIREvaluator(names, dataset_id=folder)(encoder)
    turns.answer(ndcg=metrics["NanoBEIR_mean_dot_ndcg@10"])


def start_up(turns: Turns, side: str, model: str) -> None:
    """From nothing to the vectors of a first document; the whole process is what is timed."""
    _load(side, model).encode_document(["a first document"])
    turns.answer()


def _load(side: str, folder: str) -> Any:
    if side == "ours":
        from splade_lit import AsymmetricSparseEncoder

        return AsymmetricSparseEncoder.load(folder)
    from sentence_transformers import SparseEncoder

    return SparseEncoder(folder)


def main() -> None:
    """Take turns at a task as one of its sides."""
    tasks = {task.__name__: task for task in (train, largest_batch, encode, evaluate, start_up, search)}
    task, side, settings = sys.argv[1:4]
    turns = Turns()
    if turns.wait():
        tasks[task](turns, side, **json.loads(settings))


if __name__ == "__main__":
    main()
