"""The DataModule: pairs in, batches of token ids out, the same on every start."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
import xxhash
from lightning.pytorch import LightningDataModule
from transformers import PreTrainedTokenizerBase

from splade_lit.core.bm25 import BM25
from splade_lit.core.distributed import from_first
from splade_lit.core.errors import UserError
from splade_lit.core.files import cache_folder
from splade_lit.core.progress import counted
from splade_lit.core.ranges import LARGEST_SEED, check_choice, check_range
from splade_lit.core.tokenisation import Tokenisation, vocabulary_size
from splade_lit.core.tokens import Tokens
from splade_lit.data.answers import NO_TEXT, KnownAnswers
from splade_lit.data.collection_pairs import check_pairs
from splade_lit.data.loader import PairLoader, TeacherScores, in_whole_steps
from splade_lit.data.neighbours import neighbour_order
from splade_lit.data.pairs import DOCSTRINGS, NATURAL_QUESTIONS, Pairs, load_pairs, split_rows
from splade_lit.data.sampler import NoDuplicatesBatchSampler
from splade_lit.data.tasks import task_queries
from splade_lit.data.teacher import MeanTeacher, in_batch_teacher, row_teacher
from splade_lit.data.text_keys import text_hashes, without_queries
from splade_lit.data.token_store import TokenStore, cached_token_store, tokenizer_fingerprint
from splade_lit.encoder.layout import model_folder
from splade_lit.encoder.masked_lm import load_tokenizer
from splade_lit.teachers.kinds import check_installed
from splade_lit.teachers.sentence_encoder import check_sentence_encoder

logger = logging.getLogger(__name__)

BlockBy = Literal["source", "teacher"]

_HALVES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# Blocks that are alike too: as they are cut elsewhere in each epoch, most rows then find neighbours on both sides.
_GROUP_BLOCKS = 4

ENCODER_SETTINGS = ("tokenizer", "max_query_tokens", "max_document_tokens", "prompts")
"""What `PairsDataModule` takes over from the encoder that is trained."""


class PairsDataModule(LightningDataModule):
    """Pairs of a query and a document that answers it, tokenised once, in batches in which no text occurs twice.

    Args:
        tokenizer: the tokenizer of the model that is trained, or Hub id, folder, or `package:NAME/FOLDER` of a model.
        source: Hub id, folder in the layout of a Hub data set, file (jsonl, csv or tsv, gzipped or not, or parquet),
            `docstrings`, a test collection in BEIR's, MS MARCO's or TREC's files (`FOLDER` or `FOLDER:SPLIT`), or
            `irds:` and an id of ir_datasets.
        query_column: name of the column of queries.
        document_column: name of the column of documents that answer them.
        positive_columns: names of columns of further answers, which may be empty in a row. Answers may also stand in
            rows of their own: what answers a query anywhere in the data set is never a negative of it.
        negative_columns: names of columns of hard negatives, documents that do not answer the query; they may be empty
            in a row.
        config: which configuration of the data set, if there are several; of a test collection `qrels` (pairs of a
            query and a document judged relevant) or `triples`, of ir_datasets also `docpairs` and `scoreddocs`.
        split: which split of the data set.
        revision: branch, tag or commit of a Hub id; natural-questions is pinned unless one is given.
        max_pairs: use the first pairs only; null for all.
        min_grade: of judgements, the lowest grade of a document that answers its query.
        num_eval_pairs: pairs held out of training for the validation loss.
        split_seed: seed of the choice of those pairs.
        held_out_tasks: retrieval tasks that the model is evaluated on, by name or folder; pairs with one of their
            queries are left out, whatever the file holds.
        batch_size: pairs a device takes in a training step.
        eval_batch_size: pairs a device takes in a validation step.
        max_query_tokens: tokens of a query that are kept.
        max_document_tokens: tokens of a document that are kept, special tokens among them.
        drop_last: leave out training batches that are not full.
        seed: seed of the order of batches.
        block_rows: rows next to each other that come in one batch. Where rows are ordered by topic, as docstrings are,
            neighbours are hard negatives for each other; 1 draws every row by itself.
        block_by: what makes rows neighbours: `source`, their order there, or `teacher`, the likeness of their pairs
            by the sentence encoder that is given as teacher.
        teacher: Hub id, folder or `package:NAME/FOLDER` of a sentence encoder, whose scores of all pairs of a batch are
            there for the ranking losses `kl` and `margin_mse`. It stays as it is: the vectors of all texts are made
            once, before training, in the precision of the run, and kept in the cache. Or `bm25`, over the words of the
            pairs' documents, or a list of such, whose scores are averaged.
        score_columns: names of columns of a teacher's scores, one for each document of a row in their order, or the
            name of one column of lists of them; empty or NaN where it has not scored. Other pairs of a batch have no
            score then.
        teacher_max_tokens: tokens of a text that the teacher sees; its own limit if not given.
        teacher_scale: factor of the teacher's scores, or one for each teacher; if not given, 20 for cosines, 1 for dot
            products, BM25 and scores in columns.
        cache_dir: folder for tokens, docstrings and vectors of a teacher; null for SPLADE_LIT_CACHE, else
            ~/.cache/splade_lit.
        prompts: texts put before every query and document, under the names `query` and `document`.
    """

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase,
        source: str = NATURAL_QUESTIONS,
        query_column: str = "query",
        document_column: str = "answer",
        positive_columns: Sequence[str] = (),
        negative_columns: Sequence[str] = (),
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        max_pairs: int | None = None,
        min_grade: int = 1,
        num_eval_pairs: int = 1_000,
        split_seed: int = 12,
        held_out_tasks: Sequence[str] = (),
        batch_size: int = 16,
        eval_batch_size: int = 16,
        max_query_tokens: int = 512,
        max_document_tokens: int = 512,
        drop_last: bool = False,
        seed: int = 42,
        block_rows: int = 1,
        block_by: BlockBy = "source",
        score_columns: Sequence[str] = (),
        teacher: str | Sequence[str] | None = None,
        teacher_max_tokens: int | None = None,
        teacher_scale: float | Sequence[float] | None = None,
        cache_dir: str | None = None,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        check_range("data", 1, max_pairs=max_pairs, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_range("data", 1, max_query_tokens=max_query_tokens, max_document_tokens=max_document_tokens)
        check_range("data", 1, block_rows=block_rows, teacher_max_tokens=teacher_max_tokens)
        check_range("data", 1, min_grade=min_grade)
        check_range("data", 0, num_eval_pairs=num_eval_pairs)
        check_range("data", 0, LARGEST_SEED, split_seed=split_seed, seed=seed)
        check_choice("data.block_by", block_by, get_args(BlockBy))
        if source != DOCSTRINGS:
            check_pairs(source, config, split)
        teachers = (teacher,) if isinstance(teacher, str) else tuple(teacher or ())
        scales = _scales(teacher_scale, len(teachers) or 1)
        if teachers and score_columns:
            raise UserError("data.teacher and data.score_columns are two teachers; give one of them.")
        if block_by == "teacher" and not set(teachers) - {BM25}:
            raise UserError("data.block_by is teacher; give a sentence encoder as data.teacher, or set it to source.")
        for one in set(teachers) - {BM25}:
            check_installed("data.teacher")
            check_sentence_encoder(model_folder(one), one)
        tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self.tokenisation = Tokenisation(tokenizer, max_query_tokens, max_document_tokens, prompts or {})
        self.cache_dir = cache_folder(cache_dir)
        self.num_eval_pairs, self.split_seed = num_eval_pairs, split_seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.drop_last, self.seed = drop_last, seed
        self.block_rows, self.block_by = block_rows, block_by
        columns = (query_column, document_column, negative_columns, positive_columns, score_columns)
        self._load_pairs = partial(load_pairs, source, *columns, config, split, revision, max_pairs, cache_dir)
        self._load_pairs = partial(self._load_pairs, min_grade=min_grade)
        self.held_out_tasks = tuple(held_out_tasks)
        self.has_teacher = bool(teachers or score_columns)
        self.teachers, self._teacher_settings = teachers, (teacher_max_tokens, scales)
        self._taught_by: dict[str, Any] = {
            "teacher": list(teachers),
            "teacher_max_tokens": teacher_max_tokens,
            "teacher_scale": scales,
            "score_columns": list(score_columns),
            "scores": None,  # their hash, once they are read
        }
        self._teacher_scores: TeacherScores | None = None
        self._pairs: Pairs | None = None
        self.single_batches = 0  # of the training batches, those with nothing to compare their pair with
        self._train_loader: PairLoader | None = None
        self._loader_state: dict[str, int] | None = None

    def prepare_data(self) -> None:
        """Download, parse and tokenise on one process, into caches that the others read."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load pairs and tokens, once; a UserError as of `load_pairs`, or if every pair is held out."""
        if self._pairs is not None:
            return
        pairs = self._without_held_out(self._load_pairs())
        self.train_rows, self.eval_rows = split_rows(len(pairs), self.num_eval_pairs, self.split_seed)
        logger.info("%s: %d pairs for training, %d held out.", pairs.source, len(self.train_rows), len(self.eval_rows))
        self.fingerprints = pairs.fingerprints()
        self.answers = KnownAnswers(text_hashes(pairs), pairs.num_positives)
        self._report(pairs)
        stores = [self._tokenize(pairs, position) for position in range(len(pairs.columns))]
        self.queries, *self.documents = stores
        self._teacher_scores = self._teach(pairs)
        self._pairs = pairs

    def train_dataloader(self) -> PairLoader:
        """The training batches, in another order each epoch, but for `overfit_batches`; a UserError without any."""
        shuffle = not getattr(self.trainer, "overfit_batches", 0)
        loader = self._loader(self._ordered_rows(), self.batch_size, shuffle=shuffle, drop_last=self.drop_last)
        if len(loader) == 0:
            ways = "lower batch_size or the number of devices, or set drop_last to false"
            raise UserError(f"data: {len(self.train_rows)} pairs give no batch; {ways}.")
        num_negatives = self.answers.present(loader.rows)[:, self._loaded().num_positives :].sum(axis=1)
        batches = loader.sampler.batches()
        self.single_batches = sum(len(batch) == 1 and not num_negatives[batch[0]] for batch in batches)
        if 2 * self.single_batches > len(loader):
            count = f"{self.single_batches} of {len(loader)} batches hold a single pair"
            ways = "remove copies of texts, raise batch_size, or give negative_columns"
            logger.warning("data: %s, with no other document to learn from; %s.", count, ways)
        if self._loader_state is not None:
            loader.load_state_dict(self._loader_state)
        self._train_loader, self._loader_state = loader, None
        return loader

    def val_dataloader(self) -> PairLoader | list[PairLoader]:
        """The held-out batches: always the same; an empty list if no pairs are held out."""
        return self._loader(self.eval_rows, self.eval_batch_size, shuffle=False) if len(self.eval_rows) else []

    def state_dict(self) -> dict[str, Any]:
        """Where in the epoch training stands, which teacher it has, and how many batches make a step.

        Lightning keeps the state of a loader too, but forgets to load it where the loader was there before the
        checkpoint, as it is in a run that counts its steps by epochs.
        """
        loader = {} if self._train_loader is None else {"train_loader": self._train_loader.state_dict()}
        return {"taught_by": self._taught_by, "batches_a_step": self._batches_a_step, **loader}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; warnings say where the teacher, or the number of batches that make a step, is another."""
        before, now = state_dict.get("taught_by", {}), self._taught_by
        if changed := [f"data.{name} {now[name]} (was {was})" for name, was in before.items() if now[name] != was]:
            logger.warning("Resuming with another teacher than the checkpoint's run: %s.", ", ".join(changed))
        if (was := state_dict.get("batches_a_step")) not in (None, self._batches_a_step):
            text = "Resuming with trainer.accumulate_grad_batches %s (was %s)."
            logger.warning(text, self._batches_a_step, was)
        self._loader_state = state_dict.get("train_loader")
        if self._train_loader is not None and self._loader_state is not None:
            self._train_loader.load_state_dict(self._loader_state)
            self._loader_state = None

    @property
    def _batches_a_step(self) -> int | None:
        return self.trainer.accumulate_grad_batches if self.trainer else None

    @property
    def train_pairs(self) -> Pairs:
        """The texts trained on."""
        return self._loaded().select(self.train_rows)

    @property
    def eval_pairs(self) -> Pairs:
        """The texts held out."""
        return self._loaded().select(self.eval_rows)

    @property
    def num_documents(self) -> int:
        """Number of training documents, further positives among them, hard negatives not counted."""
        return int(self.answers.present(self.train_rows)[:, : self._loaded().num_positives].sum())

    def document_frequencies(self, vocab_size: int) -> np.ndarray:
        """int64 `[vocab_size]`: in how many training documents each token is, cut as in training.

        Hard negatives are not counted, nor are the special tokens that the tokenizer adds to every document.
        """
        frequencies = np.zeros(vocab_size, dtype=np.int64)
        present = self.answers.present(self.train_rows).T[: self._loaded().num_positives]
        for store, there in zip(self.documents, present, strict=False):
            frequencies += store.document_frequencies(self.train_rows[there], vocab_size)
        (added,) = self.tokenisation.documents([""], prompt="")
        frequencies[added[added < vocab_size]] = 0
        return frequencies

    def sample_documents(self, num_documents: int, seed: int) -> Tokens:
        """Token ids of documents of training pairs drawn without repetition; of all pairs if there are fewer."""
        return self.documents[0].gather(self._sample_rows(num_documents, seed))

    def sample_queries(self, num_queries: int, seed: int) -> Tokens:
        """The distinct token ids of the queries of the documents that `sample_documents` draws."""
        return self.queries.gather(self._sample_rows(num_queries, seed))

    def _sample_rows(self, num_rows: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.choice(self.train_rows, size=min(num_rows, len(self.train_rows)), replace=False)

    def _loaded(self) -> Pairs:
        if self._pairs is None:
            raise RuntimeError("PairsDataModule: call setup() first")
        return self._pairs

    def _without_held_out(self, pairs: Pairs) -> Pairs:
        if not self.held_out_tasks:
            return pairs
        kept = without_queries(pairs, task_queries(self.held_out_tasks, self.cache_dir))
        if len(kept) == 0:
            raise UserError(f"{pairs.source}: every pair has a query of {', '.join(self.held_out_tasks)}; give others.")
        logger.info("%s: %d pairs with held-out queries are left out.", pairs.source, len(pairs) - len(kept))
        return kept

    def _report(self, pairs: Pairs) -> None:
        """Say what is unusual in the data: several answers of a query, texts that are not there, contradictions."""
        answers = self.answers.answers_per_query
        if several := int((answers > 1).sum()):
            text = "%s: %d of %d queries have several answers, up to %d; none of them counts as a negative."
            logger.info(text, pairs.source, several, len(answers), answers.max())
        for column, empty in zip(pairs.columns, (self.fingerprints == NO_TEXT).sum(axis=0), strict=True):
            if empty:
                logger.info("%s: %d of %d rows have no %s.", pairs.source, empty, len(pairs), column)
        if wrong := self.answers.num_contradictions:
            text = "%s: %d hard negatives are documents that answer their query elsewhere in the data; they count as "
            logger.warning(text + "answers.", pairs.source, wrong)

    def _tokenize(self, pairs: Pairs, position: int) -> TokenStore:
        column, ways = pairs.columns[position], self.tokenisation
        side, tokenize, max_tokens = "document", ways.documents, ways.max_document_tokens
        if column == "query":
            side, tokenize, max_tokens = "query", ways.queries, ways.max_query_tokens
        texts = xxhash.xxh3_64(self.fingerprints[:, position].tobytes())
        texts.update(ways.prompts.get(side, "").encode())
        return cached_token_store(
            lambda: counted(pairs.batches(column), f"tokenising {column}", "texts", len(pairs)),
            tokenize,
            vocab_size=vocabulary_size(ways.tokenizer.get_vocab(), "data.tokenizer"),
            folder=self.cache_dir / "tokens",
            key=f"{side}-{texts.hexdigest()}-{tokenizer_fingerprint(ways.tokenizer)}-{max_tokens}",
        )

    def _teach(self, pairs: Pairs) -> TeacherScores | None:
        if pairs.scores is not None:
            self._taught_by["scores"] = f"of hash {xxhash.xxh3_64_hexdigest(pairs.scores.tobytes())}"
            (scale,) = self._teacher_settings[1] or [1.0]
            return row_teacher(pairs.source, scale * pairs.scores, self.fingerprints[:, 1:] != NO_TEXT)
        if not self.teachers:
            return None
        device = self.trainer.strategy.root_device if self.trainer else "cpu"
        half = _HALVES.get(str(self.trainer.precision)) if self.trainer else None
        texts, (max_tokens, scales) = (pairs, self.fingerprints), self._teacher_settings
        return in_batch_teacher(*texts, self.teachers, max_tokens, scales, self.cache_dir, device, half)

    def _ordered_rows(self) -> np.ndarray:
        """The rows trained on, neighbours next to each other."""
        rows = np.sort(self.train_rows)
        if self.block_rows == 1 or self.block_by == "source":
            return rows
        assert isinstance(self._teacher_scores, MeanTeacher)
        vectors = self._teacher_scores.row_vectors
        # One order for all: the nearest by a hair on one machine may not be so on another.
        return from_first(lambda: rows[neighbour_order(vectors(rows), _GROUP_BLOCKS * self.block_rows, self.seed)])

    def _loader(self, rows: np.ndarray, batch_size: int, shuffle: bool, drop_last: bool = False) -> PairLoader:
        processes, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        texts = self.fingerprints[rows]
        texts = np.where(texts == NO_TEXT, texts[:, :1], texts)  # no text is in no other row: as if it were the query
        size = batch_size * processes
        sampler = NoDuplicatesBatchSampler(texts, size, self.seed, drop_last, shuffle, self.block_rows)
        trained_batches = self._trained_batches if self.trainer else None
        texts = (self.queries, self.documents, self.answers)
        return PairLoader(*texts, sampler, rows, trained_batches, self._teacher_scores, processes, rank)

    def _trained_batches(self) -> int:
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        accumulated, per_epoch = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        return in_whole_steps(progress.processed, accumulated, per_epoch)


def _scales(teacher_scale: float | Sequence[float] | None, num_teachers: int) -> list[float] | None:
    """One factor for each teacher; None if they are to be the usual ones."""
    if teacher_scale is None:
        return None
    scales = list(teacher_scale) if isinstance(teacher_scale, Sequence) else [teacher_scale] * num_teachers
    for scale in scales:
        check_range("data", 0, teacher_scale=scale)
    if len(scales) != num_teachers:
        raise UserError(
            f"data.teacher_scale has {len(scales)} factors for {num_teachers} teachers; give one number, or one each."
        )
    return scales
