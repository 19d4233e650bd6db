"""The sides of the benchmark, each in a process of its own that works only when it is its turn.

`python scripts/benchmark/sides.py TASK SIDE SETTINGS` reads a line from standard input for each turn and answers with a
line of JSON: the seconds of that turn and, where memory is measured, the peak above the model and the optimizer. The
first turn is to import, load and warm up. `scripts/benchmark` starts these processes and lets them take turns, so
that none works while another is measured, and whatever else the machine does hits all sides alike. Nothing here is
meant to be called by hand.
"""

import gc
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import search_sides
import torch
from floor import MatrixProducts
from turns import READY_STEPS, StepTurns, Turns

LAMBDA_D = 3e-3


@dataclass(frozen=True)
class Recipe:
    """What all sides train: the reference recipe on the same batches.

    Attributes:
        base: folder of the base model.
        pairs: file of pairs.
        max_tokens: tokens a document is cut to.
        cache: folder for what is cached or written.
        pairs_per_step: queries with their documents in a batch.
        precision: Lightning's name.
        max_steps: optimizer steps; one epoch if -1.
        seed: of dropout and of the order of batches.
    """

    base: str
    pairs: str
    max_tokens: int
    cache: str
    pairs_per_step: int = 16
    precision: str = "32-true"
    max_steps: int = -1
    seed: int = 42

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


def train_ours(turns: Turns, **settings: Any) -> None:
    """Steps of `SpladeModule` and `PairsDataModule` under Lightning's trainer."""
    import lightning as L

    class TakeTurns(L.Callback):
        def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            self.steps = StepTurns(turns, list(module.parameters()))

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            trainer.should_stop = not self.steps.step_done()

    fit_ours(TakeTurns(), Recipe(**settings))


def fit_ours(callback: Any, recipe: Recipe) -> None:
    """The reference recipe under Lightning's trainer."""
    import lightning as L

    from splade_lit.training.module import SpladeModule

    L.seed_everything(recipe.seed)
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        precision=recipe.precision,  # type: ignore[arg-type]
        max_epochs=1,
        max_steps=recipe.max_steps,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        default_root_dir=recipe.cache,
    )
    module = SpladeModule(recipe.base, max_document_tokens=recipe.max_tokens, lambda_d=LAMBDA_D)
    trainer.fit(module, recipe.data())


def train_peer(turns: Turns, **settings: Any) -> None:
    """Steps of sentence-transformers' own trainer, as its documentation trains such a model, on the same batches."""
    from transformers import TrainerCallback

    class TakeTurns(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            self.steps = StepTurns(turns, list(model.parameters()))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = not self.steps.step_done()

    peer_trainer(TakeTurns(), Recipe(**settings)).train()


def peer_trainer(callback: Any, recipe: Recipe) -> Any:
    """The same recipe, batches and order under sentence-transformers' trainer."""
    from sentence_transformers import SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

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

    arguments = SparseEncoderTrainingArguments(
        output_dir=recipe.cache,
        seed=recipe.seed,
        num_train_epochs=1,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=recipe.pairs_per_step,
        learning_rate=2e-5,
        learning_rate_mapping={r"sub_modules\.query\.0\.weight": 1e-3},
        warmup_steps=0.1,
        batch_sampler=lambda *args, **settings: SameBatches(
            range(1), batch_size=recipe.pairs_per_step, drop_last=False
        ),
        router_mapping={"query": "query", "document": "document"},
        fp16=recipe.precision == "16-mixed",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    ranking = SparseMultipleNegativesRankingLoss(model)
    loss = SpladeLoss(model, ranking, document_regularizer_weight=LAMBDA_D)
    dataset = data.train_pairs.dataset
    return SparseEncoderTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[callback])


def largest_batch_ours(turns: Turns, memory_gib: float, **settings: Any) -> None:
    """The most pairs of which two steps run in so much memory of a GPU."""
    import lightning as L

    recipe = Recipe(max_steps=2, **settings)
    size = _largest_batch(lambda pairs: fit_ours(L.Callback(), replace(recipe, pairs_per_step=pairs)), memory_gib)
    turns.timed(lambda: None, pairs=size)


def largest_batch_peer(turns: Turns, memory_gib: float, **settings: Any) -> None:
    """The same of sentence-transformers' trainer."""
    from transformers import TrainerCallback

    recipe = Recipe(max_steps=2, **settings)
    size = _largest_batch(
        lambda pairs: peer_trainer(TrainerCallback(), replace(recipe, pairs_per_step=pairs)).train(), memory_gib
    )
    turns.timed(lambda: None, pairs=size)


def _largest_batch(train: Callable[[int], Any], memory_gib: float) -> int:
    """Largest batch that fits, to an eighth: doubled until it does not, then three times half way."""
    torch.cuda.set_per_process_memory_fraction(memory_gib * (1 << 30) / torch.cuda.mem_get_info()[1])

    def fits(pairs: int) -> bool:
        try:
            train(pairs)
        except torch.OutOfMemoryError:
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        return True

    size, step = 16, 16
    while fits(size + step):
        size += step
        step = size
    for _ in range(3):
        step //= 2
        if fits(size + step):
            size += step
    return size


def train_floor(turns: Turns, **settings: Any) -> None:
    """The bare matrix products of the same steps: forward and backward of the body, forward of the decoder."""
    recipe = Recipe(**settings)
    data, batches = recipe.batches()
    rows = islice(batches, READY_STEPS - 1, None)  # `timed` gets ready with one: the turns have the trainers' batches
    products = MatrixProducts(recipe.base)

    def work() -> None:
        lengths = data.documents[0].gather(data.train_rows[next(rows)]).lengths
        products.body(lengths, backward=True)
        products.decoder(sum(lengths))

    turns.timed(work)


def encode_documents_ours(turns: Turns, model: str, texts: str, chunk: int) -> None:
    """`encode_document` of chunks of texts."""
    _encode(turns, _our_model(model).encode_document, texts, chunk)


def encode_documents_peer(turns: Turns, model: str, texts: str, chunk: int) -> None:
    """The same of sentence-transformers."""
    _encode(turns, _peer_model(model).encode_document, texts, chunk)


def encode_documents_floor(turns: Turns, model: str, texts: str, chunk: int) -> None:
    """The bare matrix products of the same chunks."""
    encoder, chunks = _our_model(model), _chunks(texts, chunk)
    products = MatrixProducts(f"{model}/document_0_MLMTransformer")
    lengths = ([len(ids) for ids in encoder.tokenisation.documents(batch)] for batch in chunks)

    def work() -> None:
        numbers = sorted(next(lengths))
        # In batches of about 4,096 tokens, as packed.
        while numbers:
            batch = [numbers.pop()]
            while numbers and sum(batch) + numbers[-1] <= 4096:
                batch.append(numbers.pop())
            products.body(tuple(batch), backward=False)
            products.decoder(sum(batch))

    turns.timed(work)


def encode_queries_ours(turns: Turns, model: str, texts: str, chunk: int) -> None:
    """`encode_query` of chunks of texts."""
    _encode(turns, _our_model(model).encode_query, texts, chunk)


def encode_queries_peer(turns: Turns, model: str, texts: str, chunk: int) -> None:
    """The same of sentence-transformers."""
    _encode(turns, _peer_model(model).encode_query, texts, chunk)


def _encode(turns: Turns, encode: Callable[[list[str]], Any], texts: str, chunk: int) -> None:
    chunks = _chunks(texts, chunk)
    turns.timed(lambda: encode(next(chunks)))


def _our_model(folder: str) -> Any:
    from splade_lit import AsymmetricSparseEncoder

    return AsymmetricSparseEncoder.load(folder)


def _peer_model(folder: str) -> Any:
    from sentence_transformers import SparseEncoder

    return SparseEncoder(folder)


def _chunks(path: str, size: int) -> Iterator[list[str]]:
    """Chunks of the texts of a JSON file, from the start again at its end."""
    texts = json.loads(Path(path).read_text(encoding="utf-8"))
    for start in count(0, size):
        yield [texts[(start + i) % len(texts)] for i in range(size)]


def evaluate_ours(turns: Turns, model: str, folder: str) -> None:
    """Load model and sets, evaluate; the whole process is what is timed."""
    from splade_lit.data.tasks import load_tasks
    from splade_lit.evaluation.task_evaluation import evaluate_tasks

    metrics = evaluate_tasks(_our_model(model), load_tasks([folder]))
    turns.answer(ndcg=metrics["NanoBEIR_mean_dot_ndcg@10"])


def evaluate_peer(turns: Turns, model: str, folder: str) -> None:
    """The same of sentence-transformers."""
    from sentence_transformers.sparse_encoder.evaluation import SparseNanoBEIREvaluator

    names = [path.stem.removeprefix("Nano").lower() for path in sorted(Path(folder, "corpus").glob("*.parquet"))]
    metrics = SparseNanoBEIREvaluator(names, dataset_id=folder)(_peer_model(model))
    turns.answer(ndcg=metrics["NanoBEIR_mean_dot_ndcg@10"])


def start_up_ours(turns: Turns, model: str) -> None:
    """From nothing to the vectors of a first document; the whole process is what is timed."""
    _our_model(model).encode_document(["a first document"])
    turns.answer()


def start_up_peer(turns: Turns, model: str) -> None:
    """The same of sentence-transformers."""
    _peer_model(model).encode_document(["a first document"])
    turns.answer()


def main() -> None:
    """Take turns at a task as one of its sides."""
    task, side, settings = sys.argv[1:4]
    sides = {**globals(), **vars(search_sides)}
    turns = Turns()
    if turns.wait():
        sides[f"{task}_{side}"](turns, **json.loads(settings))


if __name__ == "__main__":
    main()
