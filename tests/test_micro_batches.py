"""Batches encoded a few documents at a time: the vectors, gradients and steps of one batch, in less memory."""

import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from tiny_runs import NEGATIVES, make_data, make_trainer, named_weights, save_base, write_pairs

from splade_lit.core.errors import UserError
from splade_lit.core.tokens import Tokens
from splade_lit.encoder.body.micro_batches import encode_in_micro_batches
from splade_lit.encoder.body.recompute import set_recompute
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.losses.penalties import flops_penalty
from splade_lit.losses.ranking import in_batch_ranking_loss
from splade_lit.training.module import SpladeModule

VOCAB = 60


def documents(count: int = 11) -> Tokens:
    """Documents of 0 to 12 tokens."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 13, (count,), generator=random).tolist()
    lengths[3] = 0
    return Tokens.from_lists([torch.randint(5, VOCAB, (n,), generator=random).tolist() for n in lengths])


def loss_of(vectors: torch.Tensor) -> torch.Tensor:
    """A loss in which each document depends on all others."""
    queries = torch.rand(4, VOCAB, dtype=vectors.dtype, generator=torch.Generator().manual_seed(1))
    return in_batch_ranking_loss(queries @ vectors.T, torch.arange(4).repeat(2, 1).T) + 0.1 * flops_penalty(vectors)


def backward(encoder: MlmDocumentEncoder, encode, seed: int = 7) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Vectors and gradients; a backward pass may find the random numbers anywhere."""
    encoder.zero_grad()
    torch.manual_seed(seed)
    vectors = encode(encoder)
    after = torch.get_rng_state()
    torch.manual_seed(99)
    loss_of(vectors).backward()
    torch.set_rng_state(after)
    return vectors.detach(), {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def at_once(encoder: MlmDocumentEncoder) -> torch.Tensor:
    return encoder(documents())


def part_by_part(encoder: MlmDocumentEncoder) -> torch.Tensor:
    return torch.cat([encoder(part) for part in documents().split(3)])


def cached(encoder: MlmDocumentEncoder) -> torch.Tensor:
    return encode_in_micro_batches(encoder, documents(), 3)


def distance(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all gradients, relative to theirs."""
    assert ours.keys() == expected.keys()
    flat, other = (torch.cat([x[name].flatten() for name in expected]) for x in (ours, expected))
    return float((flat - other).norm() / other.norm())


@pytest.mark.parametrize("recompute", ["nothing", "cheap", "layers"])
@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("architecture", ["bert", "modernbert", "mpnet"])
def test_gradients_are_those_of_one_batch(architecture, pooling, recompute, make_masked_lm):
    encoder = MlmDocumentEncoder(make_masked_lm(architecture, VOCAB), pooling=pooling)
    set_recompute(encoder.model, recompute)
    encoder.eval()
    # Sums of 32-bit numbers come in the processor's own order; without AVX-512 those of MPNet are 1.3e-6 apart.
    is_apart = architecture == "mpnet" and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    for dtype, tolerance in ((torch.float32, 2e-6 if is_apart else 1e-6), (torch.float64, 1e-13)):
        encoder.to(dtype)
        expected, gradients = backward(encoder, at_once)
        vectors, ours = backward(encoder, cached)
        torch.testing.assert_close(vectors, expected, rtol=10 * tolerance, atol=10 * tolerance)
        assert distance(ours, gradients) < tolerance


@pytest.mark.parametrize("recompute", ["nothing", "cheap", "layers"])
@pytest.mark.parametrize("architecture", ["bert", "electra", "deberta-v2"])
def test_both_passes_draw_the_same_dropout(architecture, recompute, make_masked_lm):
    encoder = MlmDocumentEncoder(make_masked_lm(architecture, VOCAB)).train()
    set_recompute(encoder.model, recompute)
    expected, gradients = backward(encoder, part_by_part)
    state = torch.get_rng_state()
    vectors, ours = backward(encoder, cached)
    assert torch.equal(vectors, expected)
    assert distance(ours, gradients) < 1e-6
    assert torch.equal(torch.get_rng_state(), state)
    assert distance(backward(encoder, cached, seed=8)[1], gradients) > 0.1


def test_autocast_is_that_of_the_forward_pass(make_masked_lm):
    encoder = MlmDocumentEncoder(make_masked_lm("bert", VOCAB)).train()

    def halved(encode):
        def encode_halved(encoder):
            with torch.autocast("cpu", torch.bfloat16):
                return encode(encoder)

        return encode_halved

    expected, gradients = backward(encoder, halved(part_by_part))
    vectors, ours = backward(encoder, halved(cached))
    assert torch.equal(vectors, expected)
    assert vectors.dtype == torch.float32
    # Products in bfloat16 that are summed in another order: weights meet them in each part by itself.
    assert distance(ours, gradients) < 2e-2
    assert distance(backward(encoder, cached)[1], gradients) > 1e-3


def test_frozen_parameters_and_validation(make_masked_lm):
    encoder = MlmDocumentEncoder(make_masked_lm("bert", VOCAB)).eval()
    with torch.no_grad():
        assert not cached(encoder).requires_grad
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_("layer.1" in name)
    expected, gradients = backward(encoder, at_once)
    ours = backward(encoder, cached)[1]
    assert all("layer.1" in name for name in ours)
    assert distance(ours, gradients) < 1e-6
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    assert not cached(encoder).requires_grad
    torch.testing.assert_close(cached(encoder), expected)


def test_each_gradient_comes_once_and_whole(make_masked_lm):
    """Processes that train together average a gradient when it comes."""
    encoder = MlmDocumentEncoder(make_masked_lm("bert", VOCAB)).eval()
    came: list[str] = []
    for name, parameter in encoder.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: came.append(name))
    loss_of(cached(encoder)).backward()
    assert sorted(came) == sorted(name for name, _ in encoder.named_parameters())


@pytest.fixture
def base(make_masked_lm, tiny_tokenizer, tmp_path) -> Path:
    return save_base(tmp_path / "base", make_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_takes_the_steps_of_one_without(base, tiny_tokenizer, tmp_path, precision):
    """Accumulated, clipped, with hard negatives, all parts of the loss over the whole batch."""
    pairs = write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer)

    class Figures(L.Callback):
        def __init__(self):
            self.rows = []

        def on_train_batch_end(self, trainer, *args):
            self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def run(micro_batch_size: int | None, dropout: float = 0.0):
        L.seed_everything(1)
        settings = {"learning_rate": 1e-3, "idf_learning_rate": 1e-2, "lambda_d": 0.1, "l0_threshold": 3}
        module = SpladeModule(str(base), micro_batch_size=micro_batch_size, dropout=dropout, **settings)
        data = make_data(base, pairs, NEGATIVES, num_eval_pairs=9, eval_batch_size=9)
        figures = Figures()
        trainer = make_trainer(
            tmp_path, 4, accumulate_grad_batches=2, precision=precision, val_check_interval=4, callbacks=[figures]
        )
        trainer.fit(module, data)
        return named_weights(module), figures.rows

    expected, figures = run(None)
    ours, ours_figures = run(5)
    rough = precision != "32-true"
    for row, other in zip(ours_figures, figures, strict=True):
        assert row == pytest.approx(other, rel=0.1 if rough else 1e-4, abs=0.1 if rough else 1e-6)
    for name, weight in expected.items():
        if name.endswith("key.bias"):
            continue  # its gradient is 0 but for rounding
        difference = float((ours[name] - weight).abs().max())
        assert difference < (8e-3 if rough else 1e-5), name  # AdamW moves each weight by 1e-3 or 1e-2 a step at most
    assert run(5, dropout=0.3)[1] == run(5, dropout=0.3)[1]


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_out_of_range_are_told(base, size):
    with pytest.raises(UserError, match=r"model\.micro_batch_size is"):
        SpladeModule(str(base), micro_batch_size=size)


SCRIPT = """
from pathlib import Path
import torch
from transformers import BertConfig, BertForMaskedLM
from splade_lit.core.tokens import Tokens
from splade_lit.encoder.body.micro_batches import encode_in_micro_batches
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.losses.penalties import flops_penalty
torch.set_num_threads(1)
config = BertConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
encoder = MlmDocumentEncoder(BertForMaskedLM(config)).train()
def peak(count, micro):
    documents = Tokens.from_lists(torch.randint(5, 1000, (count, 32)).tolist())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    flops_penalty(encode_in_micro_batches(encoder, documents, micro)).backward()
    encoder.zero_grad()
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
print(*(peak(*sizes) for sizes in ((16, None), (16, None), (512, 16), (256, None))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts the peak in /proc")
def test_512_documents_take_the_memory_of_16_and_their_vectors():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    _, few, cached, half_at_once = map(float, result.stdout.split())  # MiB
    vectors = 512 * 1000 * 4 / 2**20
    assert cached - few < 4 * vectors + 8
    assert half_at_once - few > 60
