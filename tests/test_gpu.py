"""What runs on a CUDA device, beside the same in double precision, padded, or on the CPU."""

import warnings
from contextlib import nullcontext

import lightning as L
import pytest
import torch
from command_runs import CHECKPOINT, RETRIEVAL, call, make_world, rows, weights
from test_packing import PADDING_ID, VERIFIED, VOCAB, documents, encoders
from test_packing import gradients as parameter_gradients
from test_sparse_head import OFFSETS, assert_same, dense_pool, gradients, operands
from tiny_runs import make_data, make_trainer, save_base, write_pairs

from splade_lit.encoder.body import packing
from splade_lit.encoder.body.packing import DocumentOffsets, packed_attention
from splade_lit.encoder.body.recompute import set_recompute
from splade_lit.encoder.body.sparse_head import max_logits, splade_pool
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.fit import main
from splade_lit.training.module import SpladeModule

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def on_cuda(tensors):
    return tuple(None if x is None else x.detach().cuda() for x in tensors)


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("bias_mean", [0.0, -8.0, 20.0], ids=["half", "sparse", "dense"])
def test_head_equals_dense_autograd(pooling, activation, bias_mean):
    inputs = on_cuda(operands(bias_mean=bias_mean))
    ours = gradients(lambda *args: splade_pool(*args).cpu(), inputs, OFFSETS, pooling, activation)
    expected = gradients(lambda *args: dense_pool(*args).cpu(), inputs, OFFSETS, pooling, activation)
    assert_same(ours, expected, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_head_under_autocast(dtype):
    offsets = (0, 300, 310, 450, 450)
    inputs = on_cuda(operands(vocab=3000, hidden=64, dtype=torch.float32, offsets=offsets))

    def under_autocast(*args):
        with torch.autocast("cuda", dtype):
            return splade_pool(*args, offsets).cpu()

    exact = gradients(lambda *args: dense_pool(*args).cpu(), inputs, offsets)
    halved = gradients(under_autocast, inputs)
    assert halved[0].dtype == torch.float32
    torch.testing.assert_close(halved[0], exact[0], rtol=0.02, atol=0.05)
    for grad, other in zip(halved[1], exact[1], strict=True):
        assert torch.isfinite(grad).all()
        assert torch.nn.functional.cosine_similarity(grad.flatten(), other.flatten(), 0) > 0.97


def test_first_of_equal_tokens_takes_the_gradient():
    random = torch.Generator().manual_seed(0)
    states = torch.randn(3, 32, generator=random)
    hidden = states[[0, 1, 0, 1, 2, 2, 2, 0, 1, 1]].cuda()
    weight = torch.randn(200, 32, generator=random).cuda()
    _, (grad, _) = gradients(lambda *args: splade_pool(*args).cpu(), (hidden, weight, None), (0, 4, 10))
    assert grad[[2, 3, 5, 6, 9]].abs().max() == 0
    assert grad[[0, 1, 4]].abs().amax(1).min() > 0


def test_no_documents_and_no_tokens():
    weight = torch.randn(5, 8, device="cuda", requires_grad=True)
    for offsets in ((0,), (0, 0)):
        pooled = splade_pool(torch.randn(0, 8, device="cuda", requires_grad=True), weight, None, offsets)
        assert pooled.shape == (len(offsets) - 1, 5)
        assert not pooled.any()
        pooled.sum().backward()
    assert (max_logits(torch.randn(3, 8, device="cuda"), weight, None, (0, 0, 3))[0] == -torch.inf).all()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("architecture", VERIFIED)
def test_packed_equals_padded(architecture, precision, make_masked_lm):
    packed, padded = (encoder.cuda() for encoder in encoders(make_masked_lm, architecture))
    dtype = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    tolerance = {"fp32": 2e-5, "fp16": 2e-2, "bf16": 1.5e-1}[precision]
    tokens = documents().to("cuda")

    def run(encoder):
        with torch.autocast("cuda", dtype) if dtype else nullcontext():
            return parameter_gradients(encoder, tokens)

    ours, theirs = run(packed), run(padded)
    torch.testing.assert_close(ours[0], theirs[0], rtol=tolerance, atol=tolerance)
    for name, grad in theirs[1].items():
        assert torch.isfinite(ours[1][name]).all()
        if float(grad.norm()) > 1e-4:  # gradients of key biases are 0 but for rounding
            difference = float((ours[1][name] - grad).norm() / grad.norm())
            assert difference < 20 * tolerance, (name, difference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("window", [None, 8])
def test_attention_inside_documents(dtype, window):
    offsets = DocumentOffsets((0, 5, 5, 40, 41, 100))
    random = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 100, 4, 32, generator=random).to("cuda", dtype).transpose(1, 2) for _ in range(3)]

    def attend(dropout=0.0, tensors=states):
        return packed_attention(
            torch.nn.Module(), *tensors, None, dropout, sliding_window=window, document_offsets=offsets
        )[0]

    expected = packed_attention(
        torch.nn.Module(), *(x.double().cpu() for x in states), None, sliding_window=window, document_offsets=offsets
    )[0]
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    torch.testing.assert_close(attend().double().cpu(), expected, rtol=tolerance, atol=tolerance)
    draws = torch.stack([attend(0.3).double() for _ in range(400)])
    assert draws.std(0).max() > 0.05
    assert (draws.mean(0).cpu() - expected).abs().mean() < 0.05
    leaves = [x.detach().requires_grad_() for x in states]
    attend(0.3, leaves).sum().backward()
    assert all(torch.isfinite(leaf.grad).all() and leaf.grad.any() for leaf in leaves)


@pytest.mark.parametrize("recompute", ["cheap", "layers"])
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "modernbert"])
def test_recompute_gives_the_same_with_dropout(architecture, recompute, make_masked_lm):
    def step(recompute):
        encoder = MlmDocumentEncoder(make_masked_lm(architecture, VOCAB, PADDING_ID), PADDING_ID).cuda().train()
        set_recompute(encoder.model, recompute)
        torch.manual_seed(7)
        with torch.autocast("cuda", torch.float16):
            output = encoder(documents().to("cuda"))
        output.sum().backward()
        return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])

    expected = step("nothing")
    torch.testing.assert_close(step(recompute), expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_vectors_are_those_of_the_cpu(make_encoder):
    texts = ["the river of the city", "", "heart disease and blood " * 20, "who wrote the book"]
    encoder = make_encoder()
    expected = encoder.encode_document(texts, convert_to_csr=True).toarray()
    queries = encoder.encode_query(texts, convert_to_csr=True).toarray()
    encoder.cuda()
    assert encoder.encode_document(texts).is_cuda
    torch.testing.assert_close(
        torch.from_numpy(encoder.encode_document(texts, convert_to_csr=True).toarray()),
        torch.from_numpy(expected),
        rtol=1e-4,
        atol=1e-5,
    )
    assert (encoder.encode_query(texts, convert_to_csr=True).toarray() == queries).all()


class CountWaits(L.Callback):
    """Where the forward and backward passes of the last step waited for the device."""

    def on_train_batch_start(self, *args):
        self.caught = warnings.catch_warnings(record=True)
        self.log = self.caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

    def on_before_optimizer_step(self, *args):
        torch.cuda.set_sync_debug_mode("default")
        self.caught.__exit__(None, None, None)
        self.places = [f"{w.filename}:{w.lineno}" for w in self.log if "synchroniz" in str(w.message)]


def test_a_step_waits_for_the_device_in_the_head_alone(make_masked_lm, tiny_tokenizer, tmp_path):
    base = save_base(tmp_path / "base", make_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer)
    data = make_data(base, write_pairs(tmp_path / "pairs.jsonl", tiny_tokenizer))
    waits = CountWaits()
    trainer = make_trainer(tmp_path, 3, accelerator="gpu", devices=1, callbacks=[waits], log_every_n_steps=50)
    trainer.fit(SpladeModule(str(base)), data)
    assert len(waits.places) == 2, waits.places


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
def test_a_run_its_model_and_going_on_from_its_checkpoint(precision, tiny_tokenizer, tmp_path):
    world = make_world(tmp_path / "world", tiny_tokenizer)
    checkpoint = {"class_path": CHECKPOINT, "init_args": {"every_n_train_steps": 3, "save_top_k": -1}}
    checkpoint["init_args"]["filename"] = "{step}"
    settings = {
        "trainer.accelerator": "gpu",
        "trainer.devices": 1,
        "trainer.precision": precision,
        "trainer.callbacks": [
            {"class_path": RETRIEVAL, "init_args": {"tasks": [str(world.tasks)], "bm25": True}},
            checkpoint,
        ],
    }
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    outcome = call(main, "--config", world.config(whole, settings))
    assert outcome.code == 0, outcome.err
    model = AsymmetricSparseEncoder.load(whole / "model")
    assert model.encode_document(["the river of the city"], convert_to_csr=True).nnz
    assert "NVIDIA" in (whole / "model" / "README.md").read_text()
    last = whole / "checkpoints" / "step=3.ckpt"
    outcome = call(main, "--config", world.config(resumed, settings), "--ckpt_path", last)
    assert outcome.code == 0, outcome.err
    losses, again = ([float(row["train/loss"]) for row in rows(run)] for run in (whole, resumed))
    assert len(losses) == 6
    assert again[-3:] == pytest.approx(losses[3:], rel=1e-2)
    for name, weight in weights(resumed).items():
        assert torch.isfinite(weight).all(), name


def test_packing_is_believed_on_the_device(make_masked_lm):
    model = make_masked_lm("bert", VOCAB, PADDING_ID).cuda()
    model.set_attn_implementation(packing.ATTENTION_NAME)
    assert packing.packing_is_exact(model, PADDING_ID)
    assert packing.packing_is_exact(model.half(), PADDING_ID)
