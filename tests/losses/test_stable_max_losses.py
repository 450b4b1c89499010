"""StableMax and collapse-free cross-entropy: the semantics of F.cross_entropy, precision, kernels and bad input."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import softgate
from softgate._math.compress import compress
from softgate.losses import (
    StableMaxCrossEntropyLoss,
    _row_kernel,
    collapse_free_cross_entropy,
    stablemax_cross_entropy,
)

INF, NAN = float("inf"), float("nan")
LOSSES = [stablemax_cross_entropy, collapse_free_cross_entropy]
both_losses = pytest.mark.parametrize("loss", LOSSES)


@pytest.fixture
def path(request, monkeypatch):
    """Run on the kernel or on the reference; small blocks, so that even small inputs take several."""
    monkeypatch.setenv("SOFTGATE_KERNELS", "auto" if request.param == "blocks" else "reference")
    monkeypatch.setattr(_row_kernel, "BLOCK", 7)
    return request.param


both_paths = pytest.mark.parametrize("path", ["blocks", "reference"], indirect=True)


def expected(loss, x: Tensor, *args, **kwargs) -> Tensor:
    return F.cross_entropy(compress(x) if loss is stablemax_cross_entropy else x, *args, **kwargs)


def with_gradient(function, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


@both_paths
@both_losses
@pytest.mark.parametrize("shape", [(5,), (1,), (4, 6), (3, 1), (3, 4, 5), (2, 3, 2, 4)])
def test_semantics_of_cross_entropy(loss, path, shape) -> None:
    x = 3 * torch.randn(shape, dtype=torch.float64)
    axis = min(1, len(shape) - 1)
    rows = shape[:axis] + shape[axis + 1 :]
    labels = torch.randint(shape[axis], rows)
    some_ignored = labels.clone()
    if labels.numel() > 1:
        some_ignored.view(-1)[0] = -100
    shares = torch.randn(shape, dtype=torch.float64).softmax(axis)
    weight = torch.rand(shape[axis], dtype=torch.float64) + 0.1
    for target, w, reduction, smoothing in itertools.product(
        (labels, some_ignored, shares), (None, weight), ("mean", "sum", "none"), (0.0, 0.2)
    ):
        options = {"weight": w, "reduction": reduction, "label_smoothing": smoothing}
        got = with_gradient(lambda z, t=target, o=options: loss(z, t, **o), x)
        want = with_gradient(lambda z, t=target, o=options: expected(loss, z, t, **o), x)
        torch.testing.assert_close(got, want)
    indexed = softgate.explain(loss, x, labels).chosen
    assert indexed == path


@both_losses
def test_everything_ignored_is_nan_as_in_torch(loss) -> None:
    x, y = torch.randn(3, 4), torch.full((3,), 7)
    assert math.isnan(loss(x, y, ignore_index=7))
    assert float(loss(x, y, ignore_index=7, reduction="sum")) == 0.0


@both_losses
def test_empty_batch_is_as_in_torch(loss) -> None:
    x, y = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert math.isnan(loss(x, y)) and math.isnan(F.cross_entropy(x, y))
    assert loss(x, y, reduction="none").shape == (0,)
    assert float(loss(x, y, reduction="sum")) == 0.0
    assert math.isnan(loss(x, torch.zeros(0, 4)))


@both_paths
@both_losses
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_ignored_rows_reach_neither_loss_nor_gradient(loss, path, bad) -> None:
    x = torch.randn(4, 3)
    x[1] = bad
    got = with_gradient(lambda z: loss(z, torch.tensor([0, -100, 2, 1])), x)
    kept = with_gradient(lambda z: loss(z, torch.tensor([0, 2, 1])), x[[0, 2, 3]])
    torch.testing.assert_close(got[0], kept[0])
    torch.testing.assert_close(got[1][[0, 2, 3]], kept[1])
    assert bool((got[1][1] == 0).all())


@both_paths
def test_collapse_free_at_margin_30(path) -> None:
    loss, slope = with_gradient(
        lambda z: collapse_free_cross_entropy(z, torch.tensor([0])), torch.tensor([[30.0, 0.0]])
    )
    assert float(F.cross_entropy(torch.tensor([[30.0, 0.0]]), torch.tensor([0]))) == 0.0
    assert float(loss) == pytest.approx(math.exp(-30), rel=1e-6)
    assert slope.tolist()[0] == pytest.approx([-9.3576e-14, 9.3576e-14], rel=1e-4)


@both_paths
@pytest.mark.parametrize("margin", [0.5, 5.0, 17.0, 40.0, 60.0, 80.0])
def test_collapse_free_keeps_relative_precision(path, margin) -> None:
    x = torch.tensor([[margin, 0.0, -1.0]])
    got = with_gradient(lambda z: collapse_free_cross_entropy(z, torch.tensor([0])), x)
    rest = math.exp(-margin) * (1 + math.exp(-1))
    assert float(got[0]) == pytest.approx(math.log1p(rest), rel=1e-5)
    want = [-rest / (1 + rest), math.exp(-margin) / (1 + rest), math.exp(-margin - 1) / (1 + rest)]
    assert got[1].tolist()[0] == pytest.approx(want, rel=1e-5)


@both_paths
def test_stablemax_keeps_relative_precision(path) -> None:
    x = torch.tensor([[1e12, -1e12, -1e10]])
    got = with_gradient(lambda z: stablemax_cross_entropy(z, torch.tensor([0])), x)
    wide = with_gradient(lambda z: stablemax_cross_entropy(z, torch.tensor([0])), x.double())
    torch.testing.assert_close(got[0].double(), wide[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(got[1].double(), wide[1], rtol=1e-5, atol=0)
    assert float(got[0]) == pytest.approx(1.01e-22, rel=1e-5)


@both_losses
@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.floats(-80, 80, width=32), min_size=3, max_size=3), min_size=1, max_size=6),
    label=st.integers(0, 2),
)
def test_float32_matches_float64(loss, rows, label) -> None:
    x = torch.tensor(rows)
    y = torch.full((len(rows),), label)
    got = with_gradient(lambda z: loss(z, y, reduction="none"), x)
    want = with_gradient(lambda z: loss(z, y, reduction="none"), x.double())
    # |z| enters with its own rounding, as in any difference of logits
    torch.testing.assert_close(got[0].double(), want[0], rtol=3e-5, atol=1e-37)
    torch.testing.assert_close(got[1].double(), want[1], rtol=3e-5, atol=1e-37)


@both_paths
def test_infinite_logits_take_their_limit_under_stablemax(path) -> None:
    x = torch.tensor([[INF, 1.0, 2.0], [INF, INF, 0.0], [-INF, 1.0, 2.0], [-INF, -INF, -INF], [NAN, 0.0, 1.0]])
    y = torch.zeros(5, dtype=torch.int64)
    value, slope = with_gradient(lambda z: stablemax_cross_entropy(z, y, reduction="none"), x)
    torch.testing.assert_close(value[:3], torch.tensor([0.0, math.log(2), INF]))
    assert bool(value[3:].isnan().all()) and bool(slope[:3].isfinite().all()) and bool(slope[4].isnan().all())
    other = stablemax_cross_entropy(x, torch.ones_like(y), reduction="none")
    torch.testing.assert_close(other[:3], torch.tensor([INF, math.log(2), math.log(2.5)]))


@both_paths
def test_infinite_logits_are_nan_under_softmax(path) -> None:
    x = torch.tensor([[INF, 1.0], [INF, INF], [-INF, -INF], [-INF, 3.0], [2.0, -INF]])
    y = torch.zeros(5, dtype=torch.int64)
    got = with_gradient(lambda z: collapse_free_cross_entropy(z, y, reduction="none"), x)
    want = with_gradient(lambda z: F.cross_entropy(z, y, reduction="none"), x)
    torch.testing.assert_close(got, want, equal_nan=True)


@both_paths
@both_losses
def test_overflowing_rows(loss, path) -> None:
    """Finite logits whose linear scores or differences overflow float32."""
    x = torch.tensor([[3e38, 3e38, -3e38], [1e30, 0.0, 1.0], [-3e38, 3e38, 0.0]])
    y = torch.tensor([0, 1, 0])
    value, slope = with_gradient(lambda z: loss(z, y, reduction="none"), x)
    wide, _ = with_gradient(lambda z: loss(z, y, reduction="none"), x.double())
    torch.testing.assert_close(value.double(), wide.clamp(max=3.5e38), rtol=1e-5, atol=0, check_dtype=False) if (
        loss is stablemax_cross_entropy
    ) else torch.testing.assert_close(value, torch.tensor([math.log(2), 1e30, INF]))
    assert not bool(slope.isnan().any()) or loss is collapse_free_cross_entropy


@both_losses
def test_rows_do_not_depend_on_their_neighbours(loss) -> None:
    x = torch.randn(300, 33)
    x[7], x[9, 3] = NAN, 3e38  # these two rows leave the fast path
    y = torch.randint(33, (300,))
    value, slope = with_gradient(lambda z: loss(z, y, reduction="none"), x)
    for row in (0, 8, 10, 299):
        alone = with_gradient(lambda z, r=row: loss(z, y[r : r + 1], reduction="none"), x[row : row + 1])
        assert torch.equal(value[row : row + 1], alone[0]) and torch.equal(slope[row : row + 1], alone[1])


@both_paths
@both_losses
def test_gradients_of_all_orders(loss, path) -> None:
    y = torch.tensor([0, 1, -100, 4])
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def function(z: Tensor) -> Tensor:
        return loss(z, y)

    assert torch.autograd.gradgradcheck(function, x, check_batched_grad=True)
    with torch.no_grad():
        x[0] = 0.0  # the kink of the second derivative of StableMax; the first one exists
    assert torch.autograd.gradcheck(function, x, check_forward_ad=True, check_batched_grad=True)


@both_losses
def test_transforms(loss) -> None:
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.randint(5, (4,))
    rows = loss(x, y, reduction="none")
    torch.testing.assert_close(torch.func.vmap(loss)(x, y), rows)
    per_row = torch.func.vmap(torch.func.grad(loss))(x, y)
    torch.testing.assert_close(per_row, with_gradient(lambda z: loss(z, y, reduction="sum"), x)[1])
    tangent = torch.randn_like(x)
    _, forward = torch.func.jvp(lambda z: loss(z, y, reduction="sum"), (x,), (tangent,))
    torch.testing.assert_close(forward, (per_row * tangent).sum())
    hessian = torch.func.hessian(lambda z: loss(z, y[0]))(x[0])
    torch.testing.assert_close(hessian, hessian.T)


@both_losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_computed_in_float32(loss, dtype) -> None:
    x, y = torch.randn(64, 50).to(dtype), torch.randint(50, (64,))
    value, slope = with_gradient(lambda z: loss(z, y), x)
    wide, wide_slope = with_gradient(lambda z: loss(z, y), x.float())
    assert value.dtype == slope.dtype == dtype
    assert torch.equal(value, wide.to(dtype))
    torch.testing.assert_close(slope, wide_slope.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


@both_losses
def test_autocast_computes_in_float32(loss) -> None:
    x, y = torch.randn(4, 3).bfloat16(), torch.tensor([0, 1, 2, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(x, y).dtype == torch.float32


@both_losses
def test_strided_inputs_and_integer_targets(loss) -> None:
    x, y = torch.randn(5, 8).t(), torch.randint(5, (8,))
    want = with_gradient(lambda z: loss(z, y), x.contiguous())
    torch.testing.assert_close(with_gradient(lambda z: loss(z, y), x), want)
    torch.testing.assert_close(loss(x, y.to(torch.uint8)), want[0])
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    labels = torch.randint(3, (2, 4, 5))
    torch.testing.assert_close(loss(image, labels), loss(image.contiguous(), labels))


def test_kernel_says_why_it_does_not_run() -> None:
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    refusals = [
        ((x, torch.ones(3, 4)), {}, "probabilities"),
        ((x, y), {"label_smoothing": 0.1}, "smoothing"),
        ((x, y), {"weight": torch.ones(4, requires_grad=True)}, "weight"),
        ((x[:0], y[:0]), {}, "empty"),
        ((x.to("meta"), y.to("meta")), {}, "meta"),
    ]
    for args, kwargs, word in refusals:
        choice = softgate.explain(stablemax_cross_entropy, *args, **kwargs)
        assert choice.chosen == "reference" and word in choice.refused["blocks"]


@both_losses
def test_weight_gradient(loss) -> None:
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 1, 3])
    weight = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: loss(x, y, w), weight)


@pytest.mark.slow
@both_losses
def test_compiles_in_one_graph(loss) -> None:
    x, y = torch.randn(6, 5), torch.tensor([0, 1, 2, -100, 4, 3])
    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(with_gradient(lambda z: compiled(z, y), x), with_gradient(lambda z: loss(z, y), x))


def test_module() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    module = StableMaxCrossEntropyLoss(weight, ignore_index=1, reduction="sum", label_smoothing=0.1)
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    want = stablemax_cross_entropy(x, y, weight, 1, "sum", 0.1)
    assert torch.equal(module(x, y), want)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x, y), want)
    assert module.double().weight.dtype == torch.float64
    assert "ignore_index=1" in repr(module)


X, Y = torch.randn(3, 4), torch.tensor([0, 3, 1])
BAD = [
    *(((v, Y), {}, TypeError, "input") for v in (None, 1.0, [[1.0]], "x", X.long(), X.bool(), X.to(torch.complex64))),
    ((X.to_sparse(), Y), {}, TypeError, "input"),
    ((X.to(torch.float8_e4m3fn), Y), {}, TypeError, "input"),
    ((torch.tensor(1.0), torch.tensor(0)), {}, ValueError, "input"),
    ((torch.zeros(3, 0), Y), {}, ValueError, "input"),
    *(((X, v), {}, TypeError, "target") for v in (None, 1, [0, 1, 2], "y", Y.bool(), Y.int(), Y.to(torch.complex64))),
    *(((X, torch.tensor([0, v, 1])), {}, ValueError, "target") for v in (4, -1, -99, 2**40)),
    *(((X, v), {}, ValueError, "target") for v in (Y[:2], Y[:, None], torch.tensor(1), Y.float(), torch.ones(3, 5))),
    ((X, torch.ones(3, 4).to_sparse()), {}, TypeError, "target"),
    ((X, torch.ones(3, 4)), {"ignore_index": 2}, ValueError, "ignore_index"),
    *(((X, Y), {"weight": v}, ValueError, "weight") for v in (torch.ones(5), torch.ones(3, 4), torch.tensor(1.0))),
    *(((X, Y), {"weight": v}, TypeError, "weight") for v in (1.0, [1.0] * 4, torch.ones(4).long())),
    *(((X, Y), {"ignore_index": v}, TypeError, "ignore_index") for v in (1.0, None, "0", True)),
    *(((X, Y), {"reduction": v}, ValueError, "reduction") for v in ("average", "", "MEAN")),
    *(((X, Y), {"reduction": v}, TypeError, "reduction") for v in (None, 1, ["mean"])),
    *(((X, Y), {"label_smoothing": v}, ValueError, "label_smoothing") for v in (-0.1, 1.1, INF, NAN)),
    *(((X, Y), {"label_smoothing": v}, TypeError, "label_smoothing") for v in (None, "0.1", True)),
    ((X, Y.to("meta")), {}, ValueError, "device"),
]


@both_losses
@pytest.mark.parametrize(("args", "kwargs", "error", "word"), BAD)
def test_bad_calls_name_the_argument(loss, args, kwargs, error, word) -> None:
    assert len(BAD) >= 25
    with pytest.raises(error, match=word):
        loss(*args, **kwargs)
