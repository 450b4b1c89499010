"""CRReLU: closed forms, special values, every implementation beside the formula, the module."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from softgate import explain, native
from softgate.activations import CRReLU, crrelu
from softgate.activations.corrected.reference import crrelu_reference
from softgate.testing.budgets import ulp_error


def _eps(value: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype)


def _grid(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.linspace(-8, 8, 8001, dtype=dtype)


@pytest.fixture(params=["native", "recompute", "reference"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "native" and not native.available():
        pytest.skip("the native kernels are not there")
    monkeypatch.setenv("SOFTGATE_KERNELS", request.param)
    yield request.param


def test_closed_form_at_single_points() -> None:
    x = torch.tensor([0.0, 1.0, -1.0, 30.0, -30.0], dtype=torch.float64, requires_grad=True)
    bump = math.exp(-0.5)
    y = crrelu(x, _eps(0.3))
    torch.testing.assert_close(y.detach(), torch.tensor([0, 1 + 0.3 * bump, -0.3 * bump, 30, 0], dtype=torch.float64))
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, torch.tensor([0.3, 1, 0, 1, 0], dtype=torch.float64))


def test_eps_of_zero_is_relu(kernel: str) -> None:
    x = torch.randn(1000) * 3
    assert torch.equal(crrelu(x, torch.tensor(0.0)), F.relu(x))


def test_the_correction_is_odd_and_bounded() -> None:
    x, eps = _grid(), _eps(-0.7)
    bump = crrelu(x, eps) - F.relu(x)
    torch.testing.assert_close(bump, -bump.flip(0), rtol=0, atol=1e-15)
    assert float(bump.abs().max()) == pytest.approx(0.7 * math.exp(-0.5), rel=1e-6)
    assert torch.equal(crrelu(torch.tensor([6.5, 20.0]), torch.tensor(1.0)), torch.tensor([6.5, 20.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_special_values(kernel: str, dtype: torch.dtype) -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan, -1e4, 3e4, 0.0], dtype=dtype, requires_grad=True)
    eps = torch.tensor(0.5, requires_grad=True)
    y = crrelu(x, eps)
    expected = F.relu(x.detach())
    torch.testing.assert_close(y.detach(), expected, equal_nan=True, rtol=0, atol=0)
    grad_x, grad_eps = torch.autograd.grad(y[[0, 1, 3, 4, 5]].sum(), (x, eps))
    assert grad_x.tolist()[:2] == [1.0, 0.0] and grad_x.tolist()[3:] == [0.0, 1.0, 0.5]
    assert math.isnan(float(grad_eps))  # 0 times a NaN among the inputs
    (grad_x,) = torch.autograd.grad(crrelu(x, eps).sum(), x)
    assert math.isnan(float(grad_x[2]))


def test_squares_that_overflow_are_fine(kernel: str) -> None:
    x = torch.tensor([2e19, -2e19, 3e38], requires_grad=True)
    eps = torch.tensor(0.5, requires_grad=True)
    grads = torch.autograd.grad(crrelu(x, eps).sum(), (x, eps))
    assert grads[0].tolist() == [1.0, 0.0, 1.0] and float(grads[1]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_implementation_is_the_formula(kernel: str, dtype: torch.dtype) -> None:
    x, seed = (2 * torch.randn(9001, dtype=torch.float64)).to(dtype).double(), torch.randn(9001).to(dtype)
    eps = _eps(-0.375).requires_grad_()
    wide = x.clone().requires_grad_()
    truth = crrelu_reference(wide, eps)
    grads = torch.autograd.grad(truth, (wide, eps), seed.double())
    isas = native.info()["isas"] if kernel == "native" else (None,)
    for isa in isas:
        narrow, parameter = x.to(dtype).requires_grad_(), eps.detach().float().requires_grad_()
        assert explain(crrelu, narrow, parameter).chosen == kernel
        with nullcontext() if isa is None else native.use_isa(isa):
            y = crrelu(narrow, parameter)
        assert y.dtype is dtype
        away = truth.detach().abs() > 1e-2  # near a zero of f the last place of a float is smaller than the error
        # rounding of x² is a relative error of up to x² of it in the exponential
        allowed = 8.0 if dtype is torch.float32 else 2.0
        assert float(ulp_error(y.detach()[away], truth.detach()[away]).max()) < allowed
        found = torch.autograd.grad(y, (narrow, parameter), seed)
        eps_of = torch.finfo(dtype).eps
        torch.testing.assert_close(found[0].double(), grads[0], rtol=2 * eps_of, atol=2 * eps_of)
        torch.testing.assert_close(found[1].double(), grads[1], rtol=1e-5, atol=1e-5)


def test_finite_differences() -> None:
    x = torch.tensor([-2.5, -1.0, -0.3, 0.4, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    eps = _eps(-0.8).requires_grad_()
    assert torch.autograd.gradcheck(crrelu, (x, eps))
    assert torch.autograd.gradgradcheck(crrelu, (x, eps))
    channels = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(crrelu, (x.detach().reshape(2, 3).requires_grad_(), channels))


def test_the_second_derivative_of_a_float32_kernel_is_the_formula() -> None:
    x = torch.tensor([-1.5, 0.5, 2.0], requires_grad=True)
    (slope,) = torch.autograd.grad(crrelu(x, torch.tensor(0.4)).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x)
    z = x.detach()
    torch.testing.assert_close(second, 0.4 * (z**3 - 3 * z) * torch.exp(-(z**2) / 2))


@pytest.mark.parametrize(("eps", "increasing"), [(-1.0, True), (2.24, True), (-1.05, False), (2.25, False)])
def test_where_it_increases(eps: float, increasing: bool) -> None:
    x = torch.linspace(1e-4, 6, 60_001, dtype=torch.float64)
    assert bool((crrelu(x, _eps(eps)).diff() >= -1e-15).all()) == increasing


@pytest.mark.parametrize("eps", [-3.0, -0.8, 0.0, 0.01, 2.0])
def test_the_lipschitz_constant(eps: float) -> None:
    x = torch.linspace(-6, 6, 120_001, dtype=torch.float64)
    steepest = float((crrelu(x, _eps(eps)).diff() / x.diff()).abs().max())
    assert steepest == pytest.approx(max(1 + max(eps, 0), 1 + 0.44626 * max(-eps, 0), abs(eps)), rel=1e-3)


def test_layouts_are_kept_and_do_not_matter(kernel: str) -> None:
    x = torch.randn(2, 3, 4, 5)
    eps = torch.tensor(0.4, requires_grad=True)
    expected = torch.autograd.grad((crrelu(x, eps) * x).sum(), eps)
    for view in (x.contiguous(memory_format=torch.channels_last), x.transpose(1, 3), x.expand(2, 2, 3, 4, 5)[0]):
        leaf = view.detach().requires_grad_()
        y = crrelu(leaf, eps)
        torch.testing.assert_close(y, F.relu(view) + 0.4 * view * torch.exp(-view.square() / 2), rtol=1e-6, atol=1e-6)
        assert y.stride() == view.stride() or not view.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(torch.autograd.grad((y * leaf.detach()).sum(), eps), expected)


def test_only_x_is_kept_for_the_gradients(kernel: str) -> None:
    saved: list[torch.Tensor] = []
    x = torch.randn(50, 20, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        crrelu(x, torch.tensor(0.1, requires_grad=True))
    large = [t for t in saved if t.numel() == x.numel()]
    # the formula keeps much more: that is what the closed form is for
    assert (len(large) == 1 and large[0].data_ptr() == x.data_ptr()) or kernel == "reference"
    assert len(large) > 1 or kernel != "reference"


def test_the_gradient_of_eps_does_not_depend_on_threads() -> None:
    x, eps = torch.randn(300_000), torch.tensor(0.1, requires_grad=True)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.autograd.grad((crrelu(x, eps) * 0.3).sum(), eps)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_compiled_and_eager_agree() -> None:
    module = CRReLU(0.3)
    x = torch.randn(40, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for run in (module, compiled):
        module.eps.grad = x.grad = None
        run(x).square().sum().backward()
        if run is module:
            expected = x.grad, module.eps.grad
    torch.testing.assert_close((x.grad, module.eps.grad), expected)


def test_it_can_be_exported() -> None:
    x = torch.randn(3, 4)
    module = CRReLU(0.3)
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x))


def test_module_with_one_eps_per_channel() -> None:
    module = CRReLU(0.2, num_parameters=3)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(module(x), crrelu(x, torch.tensor(0.2)))
    with torch.no_grad():
        module.eps.copy_(torch.tensor([0.0, 1.0, -1.0]))
    assert torch.equal(module(x)[:, 0], F.relu(x[:, 0]))
    last = CRReLU(0.2, num_parameters=4, dim=-1)
    assert last(x).shape == x.shape
    with pytest.raises(ValueError, match="num_parameters=3"):
        module(torch.randn(2, 4))
    with pytest.raises(ValueError, match="num_parameters=3"):
        CRReLU(num_parameters=3, dim=0)(torch.tensor(1.0))


def test_state_dict_and_a_fixed_eps() -> None:
    learned, fixed = CRReLU(0.3), CRReLU(learnable=False)
    assert [name for name, _ in learned.named_parameters()] == ["eps"] and not list(fixed.parameters())
    fixed.load_state_dict(learned.state_dict())
    assert float(fixed.eps) == pytest.approx(0.3)
    assert "learnable=False" in repr(fixed) and "num_parameters=3, dim=-1" in repr(CRReLU(num_parameters=3, dim=-1))


def test_autocast_leaves_the_dtype_alone() -> None:
    x = torch.randn(4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CRReLU()(x).dtype is torch.bfloat16 and CRReLU()(x.float()).dtype is torch.float32


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"init": math.nan}, ValueError, "init"),
        ({"init": "0.01"}, TypeError, "init"),
        ({"num_parameters": 0}, ValueError, "num_parameters"),
        ({"dim": 1.0}, TypeError, "dim"),
        ({"learnable": 1}, TypeError, "learnable"),
    ],
    ids=str,
)
def test_bad_settings(options: dict[str, object], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        CRReLU(**options)  # type: ignore[arg-type]
