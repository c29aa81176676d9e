"""`vtr.kernels.linear`: oneDNN's products against float64, and when torch's own are taken instead."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vtr.kernels.linear as kernel
from vtr.errors import UsageError
from vtr.kernels.linear import Linear, linear, linear_info

ONEDNN = pytest.mark.skipif(not kernel._has_onednn()[0], reason=f"no oneDNN here: {kernel._has_onednn()[1]}")


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Products of every size go to oneDNN, whatever the CPU's vendor; returns a list that grows by each of its calls."""
    monkeypatch.setenv("VTR_LINEAR", "onednn")
    monkeypatch.setattr(kernel, "MIN_FLOPS", 0)
    calls: list[int] = []
    own = kernel._forward

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append(x.numel())
        return own(x, weight, bias)

    monkeypatch.setattr(kernel, "_forward", counted)
    return calls


def values(rows: int, k: int, n: int, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """x, weight, bias and a gradient of the output."""
    draw = torch.Generator().manual_seed(rows + k + n)
    x, weight, grad = (torch.randn(*shape, generator=draw) for shape in ((rows, k), (n, k), (rows, n)))
    return x, weight, torch.randn(n, generator=draw) if bias else None, grad


def derived(function, x, weight, bias, grad, leaves=(True, True, True)) -> list[Tensor]:
    """The output and the gradients of those that `leaves` names."""
    args = [None if t is None else t.detach() for t in (x, weight, bias)]
    wanted = [t.requires_grad_() for t, leaf in zip(args, leaves) if t is not None and leaf]
    out = function(*args)
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]


def assert_near(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.dtype == torch.float32
        assert a.shape == b.shape
        assert float((a.double() - b).abs().max()) <= 2e-6 * max(1.0, float(b.abs().max())), a.shape


@ONEDNN
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "k", "n"), [(1, 1, 1), (1, 7, 5), (3, 1, 2), (64, 96, 2), (37, 40, 200), (1569, 24, 96), (2500, 96, 24)]
)
def test_output_and_gradients_are_those_in_float64(onednn: list[int], rows: int, k: int, n: int, bias: bool) -> None:
    args = values(rows, k, n, bias)
    expected = derived(F.linear, *(None if t is None else t.double() for t in args))
    assert_near(derived(linear, *args), expected)
    assert len(onednn) >= 3


@ONEDNN
@pytest.mark.parametrize("leaves", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 0)])
def test_only_gradients_that_are_asked_for_are_made(onednn: list[int], leaves: tuple[int, int, int]) -> None:
    args = values(50, 12, 20)
    expected = derived(F.linear, *(t.double() for t in args if t is not None), leaves=leaves)
    assert_near(derived(linear, *args, leaves=leaves), expected)
    assert len(onednn) == 1 + leaves[0] + leaves[1]


LAYOUTS = {
    "1-D": lambda x: x[5],
    "4-D": lambda x: x.view(2, 3, 4, -1),
    "columns": lambda x: torch.cat([x, x], 1)[:, 3 : 3 + x.shape[1]],
    "rows apart": lambda x: x[::2],
    "transposed": lambda x: x.t().contiguous().t(),
    "swapped": lambda x: x.view(4, 6, -1).transpose(0, 1),
    "expanded": lambda x: x[:1].expand(9, -1),
    "stretched": lambda x: x[:, :1].expand(-1, x.shape[1]),
    "negated view": lambda x: torch._neg_view(x),
}


@ONEDNN
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_any_layout_are_right(onednn: list[int], layout: str) -> None:
    x, weight, bias, grad = values(24, 16, 10)
    view = LAYOUTS[layout](x)
    grad = grad.flatten()[:1].expand(*view.shape[:-1], 10)  # as of a sum: expanded, too
    expected = derived(F.linear, *(t.double() for t in (view, weight, bias, grad)))
    assert_near(derived(linear, view, weight, bias, grad), expected)
    assert len(onednn) == 3


@ONEDNN
@pytest.mark.parametrize("layout", ["columns", "rows apart", "transposed", "stretched"])
def test_weights_of_any_layout_are_right(onednn: list[int], layout: str) -> None:
    x, weight, _, _ = values(30, 16, 24)
    view = LAYOUTS[layout](weight)
    grad = torch.randn(30, len(view))
    expected = derived(F.linear, *(t.double() for t in (x, view)), None, grad.double())
    assert_near(derived(linear, x, view, None, grad), expected)
    assert len(onednn) == 3


@ONEDNN
def test_no_rows_and_no_columns_are_torch_s(onednn: list[int]) -> None:
    weight, bias = torch.randn(5, 4, requires_grad=True), torch.randn(5)
    out = linear(torch.empty(2, 0, 4), weight, bias)
    assert out.shape == (2, 0, 5)
    out.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(5, 4))
    assert torch.equal(linear(torch.empty(3, 0), torch.empty(5, 0), bias), bias.expand(3, 5))
    assert onednn == []


@ONEDNN
def test_two_runs_are_equal_to_the_last_bit(onednn: list[int]) -> None:
    args = values(2100, 48, 192)
    first, second = derived(linear, *args), derived(linear, *args)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert len(onednn) > 6  # the weight's gradient in slices


@ONEDNN
def test_a_second_derivative_is_refused(onednn: list[int]) -> None:
    x, weight, _, _ = (t.requires_grad_() for t in values(8, 6, 4))
    (d_x,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        d_x.sum().backward()


@ONEDNN
def test_an_input_changed_before_the_backward_is_noticed(onednn: list[int]) -> None:
    x, weight, _, _ = values(8, 6, 4)
    out = linear(x, weight.requires_grad_())
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@ONEDNN
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_torch_s(onednn: list[int], dtype: torch.dtype) -> None:
    x, weight, bias, _ = (t.to(dtype) for t in values(8, 6, 4))
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    with pytest.raises(RuntimeError):
        linear(x.float(), weight)
    assert onednn == []


@ONEDNN
def test_autocast_is_torch_s(onednn: list[int]) -> None:
    x, weight, bias, _ = values(8, 6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(x, weight, bias)
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, F.linear(x, weight, bias))
    assert onednn == []


@ONEDNN
def test_oneDNN_switched_off_is_torch_s(onednn: list[int]) -> None:
    x, weight, bias, _ = values(8, 6, 4)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
        assert linear_info()[0].chosen_for == ""
        assert "switched off" in linear_info()[0].reason
    assert onednn == []


@ONEDNN
def test_it_compiles_whole_and_exports(onednn: list[int]) -> None:
    layer = Linear(6, 4)
    x = torch.randn(8, 6)
    with torch.no_grad():
        compiled = torch.compile(lambda t: layer(t) * 2, fullgraph=True, backend="aot_eager")
        program = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: torch.export.Dim("rows", min=2)}})
    assert torch.allclose(compiled(x), F.linear(x, layer.weight, layer.bias) * 2, atol=1e-6)
    y = torch.randn(11, 6)
    assert torch.allclose(program.module()(y), F.linear(y, layer.weight, layer.bias), atol=1e-6)
    traced = torch.jit.trace(layer, (x,), check_trace=False)  # the check runs it without tracing
    assert "aten::linear" in str(traced.inlined_graph)
    assert onednn == []


class Tagged(Tensor):
    """A subclass that F.linear keeps."""


@ONEDNN
def test_transforms_modes_and_subclasses_are_torch_s(onednn: list[int]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x, weight, bias, _ = values(8, 6, 4)
    expected = F.linear(x, weight, bias)
    assert torch.allclose(torch.func.vmap(lambda row: linear(row, weight, bias))(x), expected, atol=1e-6)
    assert torch.func.jacrev(lambda t: linear(t, weight).sum())(x).shape == x.shape
    tangent = torch.func.jvp(lambda t: linear(t, weight), (x,), (torch.ones_like(x),))[1]
    assert torch.allclose(tangent, F.linear(torch.ones_like(x), weight), atol=1e-6)
    with torch.autograd.forward_ad.dual_level():
        dual = linear(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)), weight)
        assert torch.allclose(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)
    with FlopCounterMode(display=False) as counter:
        linear(x, weight, bias)
    assert counter.get_total_flops() == 2 * 8 * 6 * 4
    assert type(linear(x.as_subclass(Tagged), weight)) is Tagged
    assert linear(x.to("meta"), weight.to("meta")).device.type == "meta"
    nested = torch.nested.nested_tensor([torch.randn(2, 6), torch.randn(3, 6)])
    assert linear(nested, weight, bias).is_nested
    assert onednn == []


@ONEDNN
def test_gradients_of_many_vectors_at_once_are_right(onednn: list[int]) -> None:
    x, weight, _, _ = values(3, 6, 4)
    x.requires_grad_()
    many = torch.randn(5, 3, 4)
    (found,) = torch.autograd.grad(linear(x, weight), x, many, is_grads_batched=True)
    assert torch.allclose(found, many @ weight, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "weight", "bias"), [((2, 5), (4, 6), None), ((2, 6), (4, 6), (5,)), ((2, 6), (1, 4, 6), None)]
)
def test_shapes_that_do_not_fit_get_torch_s_message(x, weight, bias) -> None:
    with pytest.raises(RuntimeError):
        linear(torch.ones(x), torch.ones(weight), None if bias is None else torch.ones(bias))


@ONEDNN
def test_small_products_are_torch_s(onednn: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "MIN_FLOPS", 2 * 8 * 6 * 4)
    x, weight, _, _ = values(8, 6, 4)
    linear(x[:7], weight)
    assert onednn == []
    linear(x, weight)
    assert len(onednn) == 1


@ONEDNN
@pytest.mark.parametrize(("vendor", "taken"), [("AuthenticAMD", True), ("GenuineIntel", False), ("", False)])
def test_it_is_taken_on_cpus_where_mkl_has_no_avx_512(
    onednn: list[int], monkeypatch: pytest.MonkeyPatch, vendor: str, taken: bool
) -> None:
    monkeypatch.delenv("VTR_LINEAR")
    monkeypatch.setattr(kernel, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    kernel._helps.cache_clear()
    try:
        x, weight, _, _ = values(8, 6, 4)
        linear(x, weight)
        assert bool(onednn) == taken == bool(linear_info()[0].chosen_for)
        assert vendor in linear_info()[0].reason
    finally:
        kernel._helps.cache_clear()


def test_the_environment_decides_and_a_misspelt_name_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vtr.cli import main

    monkeypatch.setattr(kernel, "MIN_FLOPS", 0)
    monkeypatch.setattr(kernel, "_forward", lambda *_: pytest.fail("oneDNN was called"))
    monkeypatch.setenv("VTR_LINEAR", "torch")
    x, weight, _, _ = values(8, 6, 4)
    linear(x, weight)
    assert [row.chosen_for for row in linear_info()] == ["", "everything, by VTR_LINEAR"]
    monkeypatch.setenv("VTR_LINEAR", "mkl")
    with pytest.raises(UsageError, match=r"^VTR_LINEAR 'mkl': expected onednn or torch$"):
        linear(x, weight)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err.strip() == "vtr: VTR_LINEAR 'mkl': expected onednn or torch"


def test_asking_for_what_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_has_onednn", lambda: (False, "no AVX-512 on this CPU (AVX2)"))
    monkeypatch.setattr(kernel, "MIN_FLOPS", 0)
    monkeypatch.setenv("VTR_LINEAR", "onednn")
    with pytest.raises(UsageError, match="'onednn' is not available: no AVX-512"):
        linear(torch.ones(2, 3), torch.ones(4, 3))


def test_the_layer_is_torch_s_in_names_start_and_kind() -> None:
    torch.manual_seed(0)
    ours = Linear(6, 4)
    torch.manual_seed(0)
    theirs = torch.nn.Linear(6, 4)
    assert isinstance(ours, torch.nn.Linear)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))


def test_all_linear_layers_of_our_models_are_ours() -> None:
    from tests.helpers import small_model
    from vtr.eval.peers import TimeSformer, TimeSformerConfig

    for model in (small_model(), TimeSformer(TimeSformerConfig(image_size=32, dim=12, depth=1))):
        layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        assert layers
        assert all(type(m) is Linear for m in layers)
