"""Arguments, gradients and comparisons shared by the tests of bimamba's backends."""

from __future__ import annotations

import torch


def arguments(batch=2, length=33, width=24, states=16, taps=4, rank=3, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    values = [normal(batch, length, 2 * width)]
    for _ in range(2):
        values += [
            normal(width, taps) * 0.5,
            normal(width) * 0.2,
            normal(rank + 2 * states, width) / width**0.5,
            normal(width, rank) / rank**0.5,
            normal(width) - 3,
            torch.log(torch.arange(1.0, states + 1, dtype=torch.float64)) + 0.3 * normal(width, states),
            1 + 0.3 * normal(width),
        ]
    return [v.to(dtype) for v in values]


def with_gradients(function, values, seed=1):
    leaves = [v.detach().clone().requires_grad_() for v in values]
    y = function(*leaves)
    g = torch.Generator().manual_seed(seed)
    grad = torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.device, y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def assert_close(got, want, tolerance):
    # a gradient that is zero in theory (A_log for one token: the state starts at zero) must be exactly zero
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        error = (a.double() - b.double()).norm()
        assert error <= tolerance * b.double().norm(), f"item {i}: {error / b.double().norm():.2e}"
