"""StableMax: its laws, its limits and what autograd sees of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softgate.normalizers import StableMax, log_stablemax, stablemax

INF, NAN = float("inf"), float("nan")
# torch itself uses torch.jit.script in forward mode and when it compiles
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.*is deprecated:DeprecationWarning")
relaxed = settings(deadline=None)  # the machine may be busy
rows = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12)


def s(x: torch.Tensor) -> torch.Tensor:
    """The function of the paper, eq. 6, as it stands there."""
    return torch.where(x >= 0, x + 1, 1 / (1 - x.clamp(max=0)))


@relaxed
@given(rows)
def test_equals_the_definition(row: list[float]) -> None:
    x = torch.tensor(row, dtype=torch.float64)
    torch.testing.assert_close(stablemax(x), s(x) / s(x).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(log_stablemax(x), (s(x) / s(x).sum()).log(), rtol=1e-9, atol=1e-12)


@relaxed
@given(rows)
def test_equals_softmax_of_the_signed_logarithm(row: list[float]) -> None:
    x = torch.tensor(row, dtype=torch.float32)
    torch.testing.assert_close(stablemax(x), torch.softmax(x.sign() * x.abs().log1p(), -1), rtol=3e-6, atol=1e-7)


@relaxed
@given(st.floats(-1e5, 1e5))
def test_s_of_minus_x_is_the_reciprocal(value: float) -> None:
    # s(x) / s(0) is the odds of a class against a zero logit, and s(x) s(-x) = 1
    odds = [p[0] / p[1] for p in (stablemax(torch.tensor([v, 0.0], dtype=torch.float64)) for v in (value, -value))]
    assert float(odds[0] * odds[1]) == pytest.approx(1.0, rel=1e-12)


@relaxed
@given(rows)
def test_order_is_preserved_and_rows_sum_to_one(row: list[float]) -> None:
    x = torch.tensor(row).sort().values
    p = stablemax(x)
    assert bool((p.diff() >= 0).all()) and bool((p > 0).all())
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-6)


def test_is_not_shift_invariant() -> None:
    x = torch.tensor([1.0, 0.0, -1.0])
    assert float((stablemax(x) - stablemax(x + 5)).abs().max()) > 0.1


def test_slope_at_zero_is_that_of_both_sides() -> None:
    """At 0, where autograd of sign(x) log1p|x| is 0, the derivative is 1; zero-initialised heads depend on it."""
    for value in (0.0, -0.0, 1e-9, -1e-9):
        x = torch.tensor([value, 1.0], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(log_stablemax(x)[0], x)
        p = stablemax(x.detach())
        assert float(slope[0]) == pytest.approx(float(1 - p[0]), rel=1e-6)


@pytest.mark.parametrize("function", [stablemax, log_stablemax])
def test_gradients(function) -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(function, x)
    with torch.no_grad():
        x[0], x[1, 2] = 0.0, 0.0
    assert torch.autograd.gradcheck(function, x, check_forward_ad=True, check_batched_grad=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_infinite_scores_take_their_limit(dtype: torch.dtype) -> None:
    x = torch.tensor([[INF, 3.0, -2.0], [INF, INF, -INF], [-INF, 1.0, 0.0]], dtype=dtype, requires_grad=True)
    p = stablemax(x)
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 2 / 3, 1 / 3]], dtype=dtype)
    torch.testing.assert_close(p, expected)
    torch.testing.assert_close(log_stablemax(x), expected.log(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    (slope,) = torch.autograd.grad((p * torch.randn_like(p)).sum(), x)
    assert bool(torch.isfinite(slope).all()) and bool((slope[x.detach().isinf()] == 0).all())


def test_nan_and_masked_rows_stay_alone() -> None:
    x = torch.tensor([[NAN, 1.0], [-INF, -INF], [NAN, INF], [1.0, 0.0]])
    for function in (stablemax, log_stablemax):
        y = function(x)
        assert bool(y[:3].isnan().all())
        assert torch.equal(y[3], function(x[3]))


def test_largest_entry_keeps_its_log_probability() -> None:
    x = torch.tensor([1e9, -1e9])  # 1 - p is 1e-18, far below the rounding of 1 in float32
    assert float(log_stablemax(x)[0]) == pytest.approx(-1e-18, rel=1e-5)


def test_extreme_finite_scores() -> None:
    top = torch.finfo(torch.float32).max
    assert stablemax(torch.tensor([top, top, -top])).tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-6)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (2, 3, 4)])
def test_shapes(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for dim in range(-max(len(shape), 1), max(len(shape), 1)):
        assert stablemax(x, dim).shape == log_stablemax(x, dim).shape == shape
    strided = torch.randn(4, 3).t()
    torch.testing.assert_close(stablemax(strided, 0), stablemax(strided.contiguous(), 0), rtol=1e-6, atol=1e-7)


def test_vmap_and_jvp() -> None:
    x, tangent = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(stablemax)(x), stablemax(x))
    _, forward = torch.func.jvp(stablemax, (x,), (tangent,))
    jacobian = torch.func.vmap(torch.func.jacrev(stablemax))(x)
    torch.testing.assert_close(forward, torch.einsum("bij,bj->bi", jacobian, tangent))


@pytest.mark.slow
@pytest.mark.parametrize("function", [stablemax, log_stablemax])
def test_compiles_in_one_graph(function) -> None:
    x = torch.randn(4, 9)
    torch.testing.assert_close(torch.compile(function, fullgraph=True)(x), function(x))


def test_module() -> None:
    module = StableMax(dim=0)
    x = torch.randn(3, 2)
    assert torch.equal(module(x), stablemax(x, 0))
    assert repr(module) == "StableMax(dim=0)" and not module.state_dict()
    with pytest.raises(TypeError, match="dim"):
        StableMax(dim="last")


BAD = [
    *((x, -1, TypeError, "x") for x in (None, 1.0, [1.0], "x", (1.0,), {}, object(), lambda: 0)),
    *(
        (torch.zeros(2, 3).to(dtype), -1, TypeError, "x")
        for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)
    ),
    (torch.eye(3).to_sparse(), -1, TypeError, "x"),
    *((torch.zeros(2, 3), dim, ValueError, "dim") for dim in (2, -3, 7, 10**12)),
    *((torch.zeros(()), dim, ValueError, "dim") for dim in (1, -2)),
    *((torch.zeros(2, 3), dim, TypeError, "dim") for dim in (None, 1.0, "1", (0, 1), [0], True, torch.tensor(1))),
]


@pytest.mark.parametrize("function", [stablemax, log_stablemax])
@pytest.mark.parametrize(("x", "dim", "error", "word"), BAD)
def test_bad_calls_name_the_argument(function, x, dim, error, word) -> None:
    assert len(BAD) >= 25
    with pytest.raises(error, match=word):
        function(x, dim)
