"""What counts as a training that has diverged, step by step."""

import pytest
import torch

from splade_lit.core.errors import UserError
from splade_lit.training.divergence import DivergenceWatch


def test_what_counts_as_divergence():
    watch, weights = DivergenceWatch(scaled=True), [torch.ones(3), torch.ones(2, 2)]
    watch.check(weights, 0)
    for step in range(1, 301):  # a GradScaler leaves such steps out, and training goes on
        watch.observe(torch.tensor(torch.nan if step % 100 else 1.0), step)
    watch.check(weights, 300)
    for step in range(301, 401):
        watch.observe(torch.tensor(torch.nan), step)
        watch.check(weights, step)
    with pytest.raises(UserError, match="from step 301 on"):
        watch.check(weights, 401)
    weights[1][0, 1] = torch.nan
    with pytest.raises(UserError, match="from step 301 on"):
        watch.check(weights, 302)
    watch = DivergenceWatch()
    for step in range(3, 8):
        watch.observe(torch.tensor(torch.inf), step)
        watch.check(weights[:1], step)
    with pytest.raises(UserError, match="from step 3 on"):
        watch.check(weights[:1], 8)
    with pytest.raises(UserError, match="weights are not finite at step 7"):
        DivergenceWatch().check(weights, 7)


@pytest.mark.gpu
def test_watching_does_not_wait_for_the_device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    watch, loss = DivergenceWatch(), torch.ones((), device="cuda")
    watch.observe(loss, 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        watch.observe(loss, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    watch.check([loss], 2)
