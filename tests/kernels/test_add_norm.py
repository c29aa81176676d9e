"""Residual add and RMSNorm: the kernel, emulated and on a GPU, against float64; the operator's plain path."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from tests.kernels.cases import assert_close
from tests.kernels.emulation import Emulator, needs_gxx
from vtr.errors import UsageError
from vtr.kernels import add_norm as module
from vtr.kernels import nvrtc
from vtr.kernels.add_norm import add_norm


def case(batch=3, length=5, width=192, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    residual = torch.randn(batch, length, width, generator=g) * 3
    hidden = torch.randn(batch, length, width, generator=g).to(dtype)
    scale = torch.rand(batch, generator=g) * (torch.arange(batch) != 1)  # a dropped sample among them
    grads = [torch.randn(batch, length, width, generator=g).to(dtype), torch.randn(batch, length, width, generator=g)]
    return residual, hidden, 1 + 0.1 * torch.randn(width, generator=g), scale, grads


def reference(residual, hidden, weight, scale, grads):
    """Output, x and gradients in float64, as the equation says it."""
    leaves = [t.double().requires_grad_() if t is not None else None for t in (residual, hidden, weight)]
    x = leaves[0]
    if hidden is not None:
        x = x + leaves[1] * (scale.double()[:, None, None] if scale is not None else 1)
    out = x * leaves[2] / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    loss = (out * grads[0].double()).sum() + (x * grads[1].double()).sum()
    return [out.detach(), x.detach(), *torch.autograd.grad(loss, [t for t in leaves if t is not None])]


@needs_gxx
@pytest.mark.parametrize("width", [4, 8, 124, 128, 132, 192, 384, 576, 768, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_agrees_with_float64(width, dtype):
    residual, hidden, weight, scale, grads = case(width=width, dtype=dtype)
    launch = Emulator(module.UNIT, {"STORAGE": nvrtc.STORAGE[dtype]}, module.Job)
    for scale_or_none in (scale, None):
        out, x, rstd = module.forward(residual, hidden, weight, scale_or_none, 1e-5, dtype, launch=launch)
        got = module.backward(*grads, x, rstd, weight, scale_or_none, True, launch=launch, blocks=2)
        want = reference(residual, hidden, weight, scale_or_none, grads)
        for a, b, rounded in zip([out, x, *got], want, (True, False, False, True, False), strict=True):
            assert_close([a], [b], torch.finfo(dtype).eps if rounded and dtype != torch.float32 else 1e-6)


@needs_gxx
def test_the_kernel_norms_without_anything_to_add():
    residual, _, weight, _, grads = case()
    launch = Emulator(module.UNIT, {"STORAGE": 0}, module.Job)
    out, _, rstd = module.forward(residual, None, weight, None, 1e-5, torch.float32, launch=launch)
    d_residual, d_hidden, d_weight = module.backward(
        grads[0], None, residual, rstd, weight, None, False, launch=launch, blocks=2
    )
    want = reference(residual, None, weight, None, [grads[0], torch.zeros_like(grads[1])])
    assert d_hidden.numel() == 0
    assert_close([out, d_residual, d_weight], [want[0], want[2], want[3]], 1e-6)


@pytest.mark.parametrize("dropped", [False, True])
def test_the_plain_path_agrees_with_float64(dropped):
    residual, hidden, weight, scale, grads = case(width=21)
    leaves = [t.clone().requires_grad_() for t in (residual, hidden, weight)]
    scale = scale if dropped else None
    out, x = add_norm(*leaves, scale=scale)
    got = torch.autograd.grad((out * grads[0]).sum() + (x * grads[1]).sum(), leaves)
    assert_close([out, x, *got], reference(residual, hidden, weight, scale, grads), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_gradients_the_output_is_the_same(dtype):
    residual, hidden, weight, _, _ = case(width=192)
    residual, hidden, weight = (
        t.to(torch.float64 if dtype == torch.float64 else torch.float32) for t in (residual, hidden, weight)
    )
    want = [t.detach() for t in add_norm(residual.requires_grad_(), hidden, weight, dtype=dtype)]
    with torch.no_grad():
        got = add_norm(residual, hidden, weight, dtype=dtype)
    assert got[0].dtype == dtype
    assert_close([t.double() for t in got], want, torch.finfo(dtype).eps * 4)


def test_the_sum_stays_in_float32_whatever_the_output_is():
    residual, hidden, weight, _, _ = case(dtype=torch.bfloat16)
    out, x = add_norm(residual, hidden, weight, dtype=torch.bfloat16)
    assert (out.dtype, x.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(x, residual + hidden.float())


@needs_gxx
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_with_the_kernel_agrees_with_float64_and_compiles(dtype, monkeypatch):
    monkeypatch.setattr(nvrtc, "launcher", lambda unit, device, defines: Emulator(unit, defines, module.Job))
    monkeypatch.setattr(nvrtc, "multiprocessors", lambda index: 1)
    monkeypatch.setattr(nvrtc, "index_of", lambda device: 0)
    monkeypatch.setattr(module, "_fused", lambda *_: True)
    residual, hidden, weight, scale, grads = case(dtype=dtype)
    leaves = [t.clone().requires_grad_() for t in (residual, hidden, weight)]
    want = reference(residual, hidden, weight, scale, grads)
    for function in (add_norm, torch.compile(add_norm, fullgraph=True, backend="aot_eager")):
        out, x = function(*leaves, scale=scale, dtype=dtype)
        got = torch.autograd.grad((out * grads[0]).sum() + (x * grads[1]).sum(), leaves, retain_graph=True)
        for a, b, rounded in zip([out, x, *got], want, (True, False, False, True, False), strict=True):
            assert_close([a], [b], torch.finfo(dtype).eps if rounded and dtype != torch.float32 else 2e-6)
        d_residual, d_hidden = torch.autograd.grad((x * grads[1]).sum(), leaves[:2])  # the sum alone
        assert torch.equal(d_residual, grads[1])
        assert_close([d_hidden], [grads[1] * scale[:, None, None]], torch.finfo(dtype).eps)


def test_asking_for_the_kernel_does_not_break_a_compiled_graph(monkeypatch):
    lock = threading.Lock()

    def kernels(*_):
        with lock:
            return {}

    there = SimpleNamespace(is_available=lambda: True, get_device_name=lambda _: "a GPU")
    monkeypatch.setattr(module, "torch", SimpleNamespace(cuda=there))
    monkeypatch.setattr(nvrtc, "kernels", kernels)

    @torch.compile(fullgraph=True, backend="eager")
    def call(x):
        return x + 1 if module._has_cuda(x.device, x.dtype)[0] else x

    assert torch.equal(call(torch.zeros(2)), torch.ones(2))


def test_what_computes_it_is_told_and_can_be_chosen(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    monkeypatch.delenv("VTR_ADD_NORM", raising=False)
    cuda, plain = module.add_norm_info()
    assert (cuda.available, cuda.chosen_for, plain.chosen_for) == (False, "", "everything")
    assert "no CUDA device" in cuda.reason
    monkeypatch.setenv("VTR_ADD_NORM", "torch")
    assert module.add_norm_info()[1].chosen_for == "everything, by VTR_ADD_NORM"
    monkeypatch.setenv("VTR_ADD_NORM", "c")
    with pytest.raises(UsageError, match="VTR_ADD_NORM 'c': expected cuda or torch"):
        module.add_norm_info()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [192, 576, 768, 1024])
def test_on_a_gpu_the_operator_agrees_with_float64(width, dtype):
    residual, hidden, weight, scale, grads = (
        [t.cuda() for t in v] if isinstance(v, list) else v.cuda() for v in case(7, 333, width, dtype)
    )
    leaves = [t.clone().requires_grad_() for t in (residual, hidden, weight)]
    assert module._fused(residual, hidden, weight, dtype)
    out, x = add_norm(*leaves, scale=scale, dtype=dtype)
    got = torch.autograd.grad((out * grads[0]).sum() + (x * grads[1]).sum(), leaves)
    want = reference(residual, hidden, weight, scale, grads)
    for a, b, rounded in zip([out, x, *got], want, (True, False, False, True, False), strict=True):
        assert_close([a], [b], torch.finfo(dtype).eps if rounded and dtype != torch.float32 else 2e-6)


@pytest.mark.gpu
def test_on_a_gpu_the_operator_passes_opcheck_and_compiles():
    residual, hidden, weight, scale, _ = (v.cuda() if isinstance(v, torch.Tensor) else v for v in case())
    leaves = [t.clone().requires_grad_() for t in (residual, hidden, weight)]
    torch.library.opcheck(torch.ops.vtr.add_norm.default, (*leaves, scale, 1e-5, torch.float32))
    compiled = torch.compile(add_norm, fullgraph=True)
    assert_close(
        list(compiled(residual, hidden, weight, scale=scale)),
        list(add_norm(residual, hidden, weight, scale=scale)),
        1e-6,
    )
