"""The Triton attention kernels in the interpreter, against dense float64 formulas written out here.

Every branch of the kernels (maps, gates, masks, windows, grouped queries, power kinds, dtypes) is run once, forward and
backward. Sizes straddle the interpreter's blocks of 32 × 16.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from softgate._math.masks import causal_mask

pytest.importorskip("triton")
from softgate._triton import interpreting, maps
from softgate._triton.attention import Call, attend

pytestmark = pytest.mark.skipif(
    not (interpreting() or torch.cuda.is_available()), reason="needs a GPU or TRITON_INTERPRET=1"
)

DEVICE = "cpu" if interpreting() else "cuda"
GAMMA, ZETA = -0.05, 1.1
BUDGET = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    map: int
    sizes: tuple[int, int, int, int, int, int] = (2, 1, 35, 40, 20, 12)  # H, G, T, S, D, Dv
    causal: bool = True
    window: int | None = None
    mask: str = "none"
    gate: str = "none"
    bias: bool = False
    alibi: bool = False
    power: float = 15
    dtype: torch.dtype = torch.float32
    factors: str = "none"  # what scores are multiplied by: "rows", a number of the query; "directions", lengths too
    extra: dict[str, Any] = field(default_factory=dict)


LONG = (2, 1, 70, 90, 20, 12)
CASES = {
    "softmax": Case(maps.SOFTMAX),
    "softmax-full": Case(maps.SOFTMAX, causal=False, mask="bool"),
    "softmax-headwise": Case(maps.SOFTMAX, gate="headwise", mask="float"),
    "softmax-elementwise": Case(maps.SOFTMAX, gate="elementwise", window=7),
    "softmax-half": Case(maps.SOFTMAX, gate="headwise", dtype=torch.float16),
    "softmax-bf16": Case(maps.SOFTMAX, gate="elementwise", dtype=torch.bfloat16),
    "sigmoid": Case(maps.SIGMOID, bias=True),
    "sigmoid-alibi": Case(maps.SIGMOID, bias=True, alibi=True, causal=False, window=9),
    "sigmoid-no-bias": Case(maps.SIGMOID, mask="bool", causal=False),
    "sigmoid-half": Case(maps.SIGMOID, bias=True, dtype=torch.float16),
    "sigmoid-bf16": Case(maps.SIGMOID, bias=True, dtype=torch.bfloat16),
    "sigmoid-float-mask": Case(maps.SIGMOID, bias=True, mask="float"),
    "sigmoid-longer-queries": Case(maps.SIGMOID, sizes=(2, 2, 40, 18, 16, 16), bias=True),
    "clipped": Case(maps.CLIPPED, mask="bool"),
    "clipped-full": Case(maps.CLIPPED, causal=False, mask="float"),
    "clipped-half": Case(maps.CLIPPED, dtype=torch.float16),
    "clipped-bf16": Case(maps.CLIPPED, dtype=torch.bfloat16),
    "lssa": Case(maps.LSSA, mask="bool"),
    "lssa-half": Case(maps.LSSA, dtype=torch.float16),
    "lssa-bf16": Case(maps.LSSA, dtype=torch.bfloat16),
    "lssar": Case(maps.LSSAR, mask="bool"),
    "lssar-window": Case(maps.LSSAR, causal=False, window=6),
    "lssar-p1": Case(maps.LSSAR, power=1),
    "lssar-float-power": Case(maps.LSSAR, power=2.5),
    "lssar-half": Case(maps.LSSAR, power=3, dtype=torch.float16),
    "lssar-bf16": Case(maps.LSSAR, power=3, dtype=torch.bfloat16),
    "lssar-ties": Case(maps.LSSAR, extra={"flat": True}),
    "lssar-ties-half": Case(maps.LSSAR, extra={"flat": True}, factors="rows", dtype=torch.float16),
    "lssar-rows": Case(maps.LSSAR, power=2, factors="rows", dtype=torch.float16),
    "lssar-directions": Case(maps.LSSAR, power=3, factors="directions", mask="bool"),
    "lssa-directions-half": Case(maps.LSSA, factors="directions", dtype=torch.float16),
    "lssar-directions-bf16": Case(maps.LSSAR, power=3, factors="directions", dtype=torch.bfloat16),
    # Long enough for tiles whose pairs are all allowed, beside edges on one side or both.
    "softmax-long": Case(maps.SOFTMAX, sizes=LONG),
    "sigmoid-long": Case(maps.SIGMOID, sizes=LONG, bias=True, alibi=True, causal=False, window=60),
    "clipped-long": Case(maps.CLIPPED, sizes=LONG, causal=False, dtype=torch.float16),
    "lssar-long": Case(maps.LSSAR, sizes=LONG, window=60, power=2, factors="directions"),
}


def inputs(case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    heads, groups, queries, keys, width, out = case.sizes

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype)

    tensors = {"query": draw(1, heads, queries, width), "key": draw(1, groups, keys, width)}
    if case.extra.get("flat"):
        tensors["query"] = torch.zeros_like(tensors["query"])
    # As projections give them: heads behind the length, so no stride is what a contiguous tensor would have.
    tensors["value"] = draw(1, keys, groups, out).transpose(1, 2)
    if case.gate != "none":
        tensors["gate"] = draw(1, heads, queries, out if case.gate == "elementwise" else 1)
    if case.bias:
        tensors["head_bias"] = torch.linspace(-3.0, -1.0, heads)
    return tensors


def masks_of(case: Case) -> tuple[Tensor | None, Tensor]:
    """The mask argument, and all allowed pairs."""
    _, _, queries, keys, _, _ = case.sizes
    allowed = causal_mask(queries, keys, window=case.window, is_causal=case.causal)
    if case.mask == "none":
        return None, allowed
    keep = torch.rand(1, 1, queries, keys, generator=torch.Generator().manual_seed(2)) < 0.7
    keep[..., 5, :] = False  # a query without any key
    if case.mask == "bool":
        return keep, keep & allowed
    bias = torch.randn(1, 1, queries, keys, generator=torch.Generator().manual_seed(3))
    return bias.masked_fill(~keep, float("-inf")), keep & allowed


def dense(case: Case, tensors: dict[str, Tensor], mask: Tensor | None, allowed: Tensor) -> Tensor:
    heads, groups, queries, keys, _, _ = case.sizes
    k, v = (tensors[name].repeat_interleave(heads // groups, dim=1) for name in ("key", "value"))
    scores = by_row(case).double()[:, None] * (directions(case, tensors["query"]) @ directions(case, k).mT)
    if mask is not None and mask.dtype is not torch.bool:
        scores = scores + mask.double().masked_fill(mask == float("-inf"), 0.0)
    if "head_bias" in tensors:
        scores = scores + tensors["head_bias"][:, None, None]
    if case.alibi:
        distance = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
        scores = scores - slopes(heads).double()[:, None, None] * distance.abs()
    weights = dense_weights(case, scores, allowed)
    out = weights @ v
    return out * tensors["gate"].sigmoid() if "gate" in tensors else out


def by_row(case: Case) -> Tensor:
    """(T,): what the scores of each query are multiplied by."""
    queries = case.sizes[2]
    return torch.full((queries,), 0.3) if case.factors == "none" else torch.linspace(0.3, 3.0, queries)


def directions(case: Case, x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1) if case.factors == "directions" else x


def dense_weights(case: Case, scores: Tensor, allowed: Tensor) -> Tensor:
    some = allowed.any(-1, keepdim=True)
    if case.map == maps.SIGMOID:
        return scores.sigmoid() * allowed
    if case.map in (maps.SOFTMAX, maps.CLIPPED):
        p = torch.where(some, scores.masked_fill(~allowed, float("-inf")), 0.0).softmax(-1) * allowed
        return p if case.map == maps.SOFTMAX else ((ZETA - GAMMA) * p + GAMMA).clip(0, 1) * allowed
    f = torch.nn.functional.softplus(scores, threshold=80) * allowed
    stage1 = f / torch.where(some, f.sum(-1, keepdim=True), 1.0)
    if case.map == maps.LSSA:
        return stage1
    n = allowed.sum(-1, keepdim=True)
    u = torch.relu(n * stage1 - (n > 3).double()) * allowed
    # Rounding leaves 1e-16 of what is a tie.
    top = u.amax(-1, keepdim=True)
    tied = top < 1e-9
    w = (u / torch.where(tied, 1.0, top)) ** case.power
    return torch.where(tied, stage1, w / torch.where(tied, 1.0, w.sum(-1, keepdim=True)))


def slopes(heads: int) -> Tensor:
    return 2.0 ** -torch.arange(1.0, heads + 1)


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(name: str) -> None:
    case = CASES[name]
    mask, allowed = masks_of(case)
    tensors = {key: value.to(DEVICE).requires_grad_() for key, value in inputs(case).items()}
    wide = {key: value.detach().cpu().double().requires_grad_() for key, value in tensors.items()}
    heads, _, queries = case.sizes[:3]
    counts = allowed.sum(-1).expand(1, heads, queries).float()
    limits = (None if case.window is None else case.window - 1, 0 if case.causal else (case.window or 0) - 1)
    call = Call(
        case.map,
        scale=0.3,
        left=limits[0],
        right=None if limits[1] < 0 else limits[1],
        reference=lambda *args: pytest.fail("no second derivative was asked for"),
        gamma=GAMMA,
        zeta=ZETA,
        power=case.power,
        directions=case.factors == "directions",
    )
    options = {
        "gate": tensors.get("gate"),
        "head_bias": tensors.get("head_bias"),
        "mask": None if mask is None else mask.to(DEVICE),
        "slopes": slopes(heads).to(DEVICE) if case.alibi else None,
        "counts": counts.to(DEVICE) if case.map == maps.LSSAR else None,
        "offsets": (counts > 3).float().to(DEVICE) if case.map == maps.LSSAR else None,
        "row_factor": None if case.factors == "none" else by_row(case).expand(1, heads, queries).to(DEVICE),
    }
    out = attend(tensors["query"], tensors["key"], tensors["value"], call, **options)
    expected = dense(case, wide, mask, allowed)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(case.dtype)
    got = torch.autograd.grad(out, list(tensors.values()), upstream.to(DEVICE))
    truth = torch.autograd.grad(expected, list(wide.values()), upstream.double())

    assert out.dtype is case.dtype
    budget = BUDGET[case.dtype]
    for label, a, b in zip(("out", *tensors), (out.detach(), *got), (expected.detach(), *truth), strict=True):
        error = float((a.cpu().double() - b).abs().max())
        assert error <= budget * max(float(b.abs().max()), 1.0), f"{label}: {error}"
    if mask is not None:
        assert not out[:, :, 5].detach().any(), "a query without any key must give 0"
        assert not got[0][:, :, 5].any(), "and get no gradient"


def test_nan_stays_in_its_row() -> None:
    case = CASES["softmax"]
    tensors = {name: tensor.to(DEVICE) for name, tensor in inputs(case).items()}
    tensors["query"][0, 0, 7, 0] = float("nan")
    call = Call(maps.SOFTMAX, 0.3, None, 0, lambda *args: pytest.fail("not needed"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy, which the interpreter computes with, mentions NaN
        out = attend(tensors["query"], tensors["key"], tensors["value"], call)
    bad = out.isnan().any(-1)
    assert bool(bad[0, 0, 7]) and int(bad.sum()) == 1


def test_second_derivatives_go_through_the_reference() -> None:
    q = torch.randn(1, 1, 3, 4, device=DEVICE, requires_grad=True)

    def reference(query: Tensor, key: Tensor, value: Tensor, _gate: Any, _bias: Any) -> Tensor:
        return (query @ key.mT).sigmoid() @ value

    call = Call(maps.SIGMOID, 1.0, None, None, reference)
    (first,) = torch.autograd.grad(attend(q, q.detach(), q.detach(), call).sum(), q, create_graph=True)
    (expected,) = torch.autograd.grad(reference(q, q.detach(), q.detach(), None, None).sum(), q, create_graph=True)
    second, truth = (torch.autograd.grad(g.square().sum(), q)[0] for g in (first, expected))
    torch.testing.assert_close(second, truth)


def test_a_second_backward_pass_gives_the_same() -> None:
    tensors = [x.to(DEVICE).requires_grad_() for x in inputs(CASES["softmax"]).values()]
    out = attend(*tensors, Call(maps.SOFTMAX, 0.3, None, 0, lambda *args: pytest.fail("not needed")))
    first, second = (torch.autograd.grad(out.sum(), tensors, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
