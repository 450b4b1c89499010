"""The Triton kernels of dense losses in the interpreter, against the references in float64.

Sizes straddle the interpreter's tile of 4 rows × 16 classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from softgate import explain
from softgate._triton import interpreting
from softgate.losses import (
    collapse_free_cross_entropy,
    comp_sum_loss,
    l2_svm_loss,
    spherical_softmax_loss,
    stablemax_cross_entropy,
    taylor_softmax_loss,
    z_loss,
)
from softgate.registry import record_of

pytestmark = [
    pytest.mark.skipif(not (interpreting() or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, in lanes whose value is not taken
]

DEVICE = "cpu" if interpreting() else "cuda"
INF, NAN = torch.inf, torch.nan
LOSSES: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "stablemax": (stablemax_cross_entropy, {}),
    "collapse-free": (collapse_free_cross_entropy, {}),
    "gce": (comp_sum_loss, {"tau": 1.5, "temperature": 2.0}),
    "capped": (comp_sum_loss, {"tau": 0.5, "max_weight": 4.0}),
    "exponential": (comp_sum_loss, {"tau": 0.0}),
    "taylor": (taylor_softmax_loss, {}),
    "spherical": (spherical_softmax_loss, {"eps": 0.3}),
    "z": (z_loss, {"alpha": 4.0, "b": 1.5}),
    "l2-svm": (l2_svm_loss, {"C": 0.7}),
    "l1-svm": (l2_svm_loss, {"hinge": "linear", "over_classes": "mean", "margin": 0.5}),
}


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", "triton")


def compare(name: str, x: Tensor, target: Tensor, rtol: float = 3e-6, **options: Any) -> None:
    """Loss and gradient of the kernel against the reference in float64 of the same numbers."""
    function, fixed = LOSSES[name]
    fixed = fixed | options
    target = target.to(DEVICE)
    if "weight" in fixed:
        fixed["weight"] = fixed["weight"].to(DEVICE)
    leaf = x.to(DEVICE).requires_grad_()
    wide = leaf.detach().double().requires_grad_()
    assert explain(function, leaf, target, **fixed).chosen == "triton"
    wide_options = {k: v.double() if isinstance(v, Tensor) else v for k, v in fixed.items()}
    found, truth = function(leaf, target, **fixed), record_of(function).reference(wide, target, **wide_options)
    upstream = torch.linspace(0.5, 2.0, truth.numel(), device=DEVICE).reshape(truth.shape)
    (gradient,) = torch.autograd.grad(found, leaf, upstream.to(found.dtype))
    (expected,) = torch.autograd.grad(truth, wide, upstream.to(found.dtype).double())
    assert found.dtype is x.dtype and gradient.shape == x.shape
    for a, b in ((found.detach(), truth.detach()), (gradient, expected)):
        scale = b[b.isfinite()].abs().max().clamp(min=1e-30)
        torch.testing.assert_close((a / scale).double(), b / scale, rtol=rtol, atol=rtol, equal_nan=True)


def draw(*shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("name", LOSSES)
def test_rows_that_straddle_tiles(name: str) -> None:
    target = torch.tensor([36, 0, -100, 15, 16, 7])
    compare(name, draw(6, 37), target, weight=torch.rand(37) + 0.5)
    compare(name, draw(6, 37), target, reduction="none")


@pytest.mark.parametrize("name", ["stablemax", "exponential", "taylor", "z", "l2-svm"])
def test_other_shapes_and_layouts(name: str) -> None:
    compare(name, draw(5), torch.tensor(3))
    compare(name, draw(2, 19, 3), torch.randint(19, (2, 3)), reduction="sum")
    compare(name, draw(2, 3, 2, 7).movedim(3, 1), torch.randint(7, (2, 3, 2)), reduction="none")
    compare(name, draw(2, 5, 3, 2).mT, torch.randint(5, (2, 2, 3)), weight=torch.rand(5))
    compare(name, draw(9, 40).T[:20, ::2], torch.randint(5, (20,)).to(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["stablemax", "gce", "spherical", "z", "l1-svm"])
def test_16_bit_logits(name: str, dtype: torch.dtype) -> None:
    compare(name, draw(3, 20).to(dtype), torch.tensor([1, 19, 4]), rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["collapse-free", "stablemax", "gce"])
def test_a_large_margin_keeps_its_loss_and_gradient(name: str) -> None:
    x = torch.zeros(2, 20)
    x[0, 3], x[1, 18] = 60.0, 1e6
    target = torch.tensor([3, 18])
    compare(name, x[:1], target[:1], rtol=2e-5)
    compare(name, x, target, rtol=2e-5, reduction="none")


#: Rows that overflow float32 in linear scale, or hold infinities or NaN; the target is class 1.
ROWS = {
    "overflow": [3e38] * 5 + [1e37] * 12,
    "far": [0.0, -1e25, 1e30, 1e20, -3.0],
    "one-huge": [1.0, 2e38, 0.0, -5.0],
    "infinite-rival": [0.0, 1.0, INF, 2.0],
    "infinite-target": [0.0, INF, 1.0, -2.0],
    "infinities": [INF, INF, 1.0, -2.0],
    "masked": [1.0, 2.0, -INF, -INF],
    "masked-target": [1.0, -INF, 0.5, 2.0],
    "nothing": [-INF] * 3,
    "nan": [1.0, 2.0, NAN],
    "nan-and-infinity": [INF, 2.0, NAN],
    "level": [2.5] * 20,
    "offset": [1e6 + i for i in range(20)],
    "tiny": [1e-30 * i for i in range(20)],
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", ["stablemax", "collapse-free", "taylor", "z"])
def test_difficult_rows(name: str, row: str) -> None:
    """Beside an ordinary row; gradients of rows that are no numbers are not compared."""
    function, fixed = LOSSES[name]
    x = torch.tensor([ROWS[row], [0.1 * i for i in range(len(ROWS[row]))]], device=DEVICE)
    target = torch.tensor([1, 2], device=DEVICE)
    leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    found = function(leaf, target, reduction="none", **fixed)
    truth = record_of(function).reference(wide, target, reduction="none", **fixed)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-6, equal_nan=True)
    if bool(truth.isfinite().all()):
        (gradient,) = torch.autograd.grad(found.sum(), leaf)
        (expected,) = torch.autograd.grad(truth.sum(), wide)
        scale = expected.abs().amax(1, keepdim=True).clamp(min=1e-33)
        torch.testing.assert_close(gradient.double() / scale, expected / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["stablemax", "collapse-free", "taylor", "z", "l2-svm"])
def test_ignored_rows_reach_nothing(name: str) -> None:
    function, fixed = LOSSES[name]
    x = torch.tensor([[1.0, 2.0, 0.5], [NAN, INF, -INF]], device=DEVICE, requires_grad=True)
    loss = function(x, torch.tensor([1, -100], device=DEVICE), **fixed)
    (gradient,) = torch.autograd.grad(loss, x)
    assert bool(loss.isfinite()) and not gradient[1].any() and bool(gradient[0].any())
    nothing = function(x, torch.full((2,), -100, device=DEVICE), **fixed)
    assert bool(nothing == 0.0 if name == "l2-svm" else nothing.isnan())
    assert not torch.autograd.grad(nothing, x)[0].any()


def test_a_class_that_does_not_exist_is_nan() -> None:
    if interpreting():
        pytest.skip("on the CPU the argument check says so")
    x = torch.randn(2, 3, device=DEVICE)
    rows = stablemax_cross_entropy(x, torch.tensor([1, 3], device=DEVICE), reduction="none")
    assert bool(rows[0].isfinite()) and bool(rows[1].isnan())


@pytest.mark.parametrize("name", ["stablemax", "gce", "l2-svm"])
def test_second_derivatives_go_through_the_reference(name: str) -> None:
    function, fixed = LOSSES[name]
    x, target = draw(3, 4).to(DEVICE).requires_grad_(), torch.tensor([1, 0, -100], device=DEVICE)
    results = []
    for f in (function, record_of(function).reference):
        (first,) = torch.autograd.grad(f(x, target, **fixed), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*results)


def test_the_penalty_of_a_head_is_added() -> None:
    head = torch.randn(4, 3, device=DEVICE, requires_grad=True)
    x, target = draw(3, 4).to(DEVICE, torch.bfloat16), torch.tensor([1, 0, 2], device=DEVICE)
    loss = l2_svm_loss(x, target, head_weight=head)
    torch.testing.assert_close(loss, record_of(l2_svm_loss).reference(x, target, head_weight=head))
    torch.testing.assert_close(torch.autograd.grad(loss, head)[0], head.detach(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"label_smoothing": 0.1}, "smoothing"),
        ({"target": torch.full((3, 4), 0.25)}, "probabilities"),
        ({"weight": torch.ones(4, requires_grad=True)}, "weight"),
        ({"input": torch.ones(3, 4, dtype=torch.float64)}, "float64"),
    ],
    ids=["smoothing", "probabilities", "learned-weight", "float64"],
)
def test_what_is_refused_in_words(options: dict[str, Any], word: str) -> None:
    arguments = {"input": torch.ones(3, 4), "target": torch.tensor([0, 1, 2])} | options
    arguments = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match=word):
        comp_sum_loss(**arguments)
