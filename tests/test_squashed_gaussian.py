"""The fast squashed Gaussian equals the readable one, values and gradients."""

from __future__ import annotations

import pytest
import torch

from rllib_damo.nn.squashed_gaussian import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    SquashedSample,
    mean_and_log_std,
    squashed_sample,
)

NUM, DIM = 40, 3


@pytest.mark.parametrize("rows_innermost", [False, True])
@pytest.mark.parametrize("has_buffer", [False, True])
def test_values_and_gradients_equal_autograds(rows_innermost: bool, has_buffer: bool) -> None:
    torch.manual_seed(0)
    outputs, noise = torch.rand(NUM, 2 * DIM, dtype=torch.float64), torch.randn(NUM, DIM, dtype=torch.float64)
    outputs[:10, DIM:], outputs[10:20, DIM:] = LOG_STD_MIN - 1, LOG_STD_MAX + 1
    outputs[:3, :DIM] = 20.0  # saturated actions
    if rows_innermost:
        outputs = outputs.T.contiguous().T
    leaf = outputs.clone().requires_grad_()
    actions, log_prob = squashed_sample(*mean_and_log_std(leaf), noise)
    buffer = torch.zeros(NUM, DIM + 2, dtype=torch.float64)[:, 2:] if has_buffer else None
    sample = SquashedSample(outputs, noise, buffer)
    torch.testing.assert_close(sample.actions, actions.detach())
    torch.testing.assert_close(sample.log_prob, log_prob.detach())
    if buffer is not None:
        assert sample.actions is buffer
    action_delta, log_prob_delta = torch.randn(NUM, DIM, dtype=torch.float64), torch.randn(NUM, dtype=torch.float64)
    loss = (actions * action_delta).sum() + (log_prob * log_prob_delta).sum()
    (expected,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(sample.backward(action_delta, log_prob_delta), expected)
    assert (expected[:20, DIM:] == 0).all()  # clamped
    assert (expected[20:, DIM:] != 0).all()
