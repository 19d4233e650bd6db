"""Several processes train as one that has the whole batch: loss, gradients, weights of penalties, tables, figures."""

import subprocess
import sys
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import parallel_runs
import pytest
import torch
from command_runs import World
from parallel_runs import VARIANTS
from tiny_runs import NEGATIVES, make_data, write_pairs

from splade_lit.core.tokens import PairBatch
from splade_lit.data.loader import PairLoader


@pytest.fixture(scope="module")
def noted(world: World, tiny_tokenizer, tmp_path_factory) -> Any:
    """Function of a variant, a number of processes and one of pairs in a batch of all: what was noted of its run."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "base").symlink_to(world.base)
    write_pairs(folder / "pairs.jsonl", tiny_tokenizer, num_pairs=256)
    (folder / "task").symlink_to(world.tasks)

    @cache
    def train(processes: int, num_pairs: int) -> None:
        if processes == 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            for variant in VARIANTS:
                parallel_runs.train(folder, variant, 1, num_pairs)
            torch.set_num_threads(threads)
            return
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        script = [f"--nproc-per-node={processes}", parallel_runs.__file__, str(folder), str(num_pairs), *VARIANTS]
        done = subprocess.run([*launch, *script], capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-4000:]

    def read(variant: str, processes: int, num_pairs: int) -> Any:
        train(processes, num_pairs)
        return torch.load(folder / f"{variant}-{processes}-{num_pairs}.pt", weights_only=True)

    return read


@pytest.mark.parametrize(
    ("processes", "num_pairs"), [(2, 8), *(pytest.param(n, 32, marks=pytest.mark.slow) for n in (2, 4))]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_number_of_processes_is_one(noted, variant, processes, num_pairs):
    one, several = noted(variant, 1, num_pairs), noted(variant, processes, num_pairs)
    assert one["gradients"].keys() == several["gradients"].keys()
    for name, gradient in one["gradients"].items():
        # Some gradients are 0 but for rounding, as those of the biases of keys are.
        error = torch.linalg.vector_norm(several["gradients"][name] - gradient)
        assert error <= 1e-6 * torch.linalg.vector_norm(gradient) + 1e-7, name
    assert len(one["loss"]) == VARIANTS[variant].steps
    np.testing.assert_allclose(several["loss"], one["loss"], rtol=1e-5)
    np.testing.assert_allclose(several["weight"], one["weight"], rtol=1e-4)
    for name, value in one["state"].items():
        torch.testing.assert_close(several["state"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert several["figures"] == pytest.approx(one["figures"], rel=1e-3)


@pytest.mark.parametrize("processes", [2, 3, 50])
def test_documents_are_shared_and_all_else_is_everybodys(tiny_tokenizer, tmp_path, processes):
    pairs = write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer)
    data = make_data(tiny_tokenizer, pairs, NEGATIVES, teacher="bm25")
    data.setup()
    loader = data.train_dataloader()
    rows = loader.rows[loader.sampler.batches()[0]]
    whole = loader.batch(rows)
    assert whole.shares is None
    parts: list[PairBatch] = []
    for rank in range(processes):
        texts = (data.queries, data.documents, data.answers)
        shared = PairLoader(*texts, loader.sampler, loader.rows, None, loader.teacher, processes, rank)
        parts.append(shared.batch(rows))
    shares = parts[0].shares
    assert sum(shares) == len(whole.documents)
    documents = [ids for part, share in zip(parts, shares, strict=True) for ids in list(part.documents)[:share]]
    assert [ids.tolist() for ids in documents] == [ids.tolist() for ids in whole.documents]
    longest = max(whole.documents.lengths)
    for part, share in zip(parts, shares, strict=True):
        assert part.shares == shares
        assert len(part.documents) == max(share, 1), "each takes part in a step"
        assert abs(sum(part.documents.lengths) - sum(whole.documents.lengths) / processes) <= longest
        assert torch.equal(part.queries.input_ids, whole.queries.input_ids)
        assert torch.equal(part.answers, whole.answers)
        torch.testing.assert_close(part.teacher_scores, whole.teacher_scores, equal_nan=True)


def test_a_text_of_one_process_never_meets_itself_in_another(tiny_tokenizer, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer, num_pairs=32)
    first = pairs.read_text().splitlines()[0]
    pairs.write_text("\n".join([*pairs.read_text().splitlines(), *[first] * 5]))
    data = make_data(tiny_tokenizer, pairs, batch_size=2)
    data.setup()
    data.trainer = SimpleNamespace(world_size=4, global_rank=1)  # what it asks of a trainer
    loader = data._loader(data.train_rows, 2, shuffle=True)
    copies = {0, *range(32, 37)}
    batches = [set(loader.rows[batch]) for batch in loader.sampler.batches()]
    assert [len(copies & batch) for batch in batches if copies & batch] == [1] * 6
    assert max(map(len, batches)) == 8
