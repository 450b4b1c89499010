"""Fused linear losses: formulas, chunks against whole logits, what may be left out, what autograd may ask."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate import native
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.losses import (
    FusedLinearLoss,
    fused_linear_loss,
    linear_cross_entropy,
    selective_log_softmax_fused,
    stablemax_cross_entropy,
)
from softgate.losses.fused_linear.chunks import Problem, chunk_rows
from softgate.losses.fused_linear.passes import TorchPasses
from softgate.losses.fused_linear.settings import Settings
from softgate.losses.fused_linear.shards import Shard

INF, NAN = float("inf"), float("nan")
LOSSES: dict[str, dict[str, Any]] = {
    "ce": {},
    "sum_exponential": {"loss": "comp_sum", "tau": 0.0},
    "gce": {"loss": "comp_sum", "tau": 1.7},
    "mae": {"loss": "comp_sum", "tau": 2.0},
    "focal": {"loss": "focal", "gamma": 1.5},
    "stablemax": {"loss": "stablemax"},
    "svm": {"loss": "svm"},
    "zloss": {"loss": "zloss"},
    "callable": {"loss": lambda log_p: (log_p.square() - log_p, 1.0 - 2.0 * log_p)},
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
CPU = ["eager", *(["cpu"] if native.available() else [])]


def draw(
    rows: int = 11, classes: int = 13, features: int = 6, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    x = torch.randn(rows, features, dtype=dtype, requires_grad=True)
    w = torch.randn(classes, features, dtype=dtype, requires_grad=True)
    return x, w, torch.randint(classes, (rows,))


def options_of(loss: dict[str, Any], classes: int, dtype: torch.dtype, count: int) -> list[dict[str, Any]]:
    """Random combinations of all other options that the loss takes."""
    axes = {
        "bias": (None, torch.randn(classes, dtype=dtype, requires_grad=True)),
        "softcap": (None, 2.0),
        "temperature": (1.0, 0.6),
        "label_smoothing": (0.0, 0.1),
        "z_penalty": (0.0, 0.01),
        "class_weight": (None, torch.rand(classes, dtype=dtype) + 0.2),
        "reduction": ("mean", "sum", "none"),
        "chunk": (None, 3),
    }
    name = loss.get("loss")
    for left_out in {"svm": ("label_smoothing", "z_penalty"), "zloss": ("label_smoothing", "z_penalty", "softcap")}.get(
        name if isinstance(name, str) else "", ()
    ):
        axes[left_out] = axes[left_out][:1]
    found = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return random.Random(0).sample(found, min(count, len(found)))


def value_and_gradients(x: Tensor, w: Tensor, y: Tensor, **options: Any) -> list[Tensor]:
    loss = fused_linear_loss(x, w, y, **options)
    inputs = [t for t in (x, w, options.get("bias")) if t is not None and t.requires_grad]
    upstream = torch.linspace(-1.0, 2.0, loss.numel()).reshape(loss.shape).to(loss.dtype) if loss.ndim else None
    return [loss.detach(), *torch.autograd.grad(loss, inputs, upstream)]


def assert_same(found: list[Tensor], expected: list[Tensor], rtol: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert float((a.double() - b.double()).abs().max()) <= rtol * max(float(b.abs().max()), 1e-3)


# --- what the reference computes -------------------------------------------------------------------------------------


def test_cross_entropy_is_that_of_torch() -> None:
    x, w, y = draw()
    y[2] = 7
    bias, weight = torch.randn(13, dtype=torch.float64), torch.rand(13, dtype=torch.float64)
    for reduction, smoothing in itertools.product(("mean", "sum", "none"), (0.0, 0.3)):
        truth = F.cross_entropy(F.linear(x, w, bias), y, weight, ignore_index=7, reduction=reduction,
                                label_smoothing=smoothing)  # fmt: skip
        for backend in ("reference", "eager"):
            found = fused_linear_loss(x, w, y, bias=bias, class_weight=weight, ignore_index=7, reduction=reduction,
                                      label_smoothing=smoothing, backend=backend)  # fmt: skip
            torch.testing.assert_close(found, truth)
    if hasattr(F, "linear_cross_entropy"):
        torch.testing.assert_close(linear_cross_entropy(x, w, y), F.linear_cross_entropy(x, w, y))


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        (LOSSES["sum_exponential"], lambda p: 1.0 / p - 1.0),
        (LOSSES["gce"], lambda p: (1.0 - p**0.7) / 0.7),
        (LOSSES["mae"], lambda p: 1.0 - p),
        (LOSSES["focal"], lambda p: -((1.0 - p) ** 1.5) * p.log()),
        (LOSSES["callable"], lambda p: p.log().square() - p.log()),
    ],
    ids=["sum_exponential", "gce", "mae", "focal", "callable"],
)
def test_members_are_functions_of_the_probability(loss, formula) -> None:
    x, w, y = draw()
    p = F.softmax(2.0 * torch.tanh(x @ w.t() / 2.0) / 0.6, 1).gather(1, y[:, None]).squeeze(1)
    found = value_and_gradients(x, w, y, softcap=2.0, temperature=0.6, reduction="sum", **loss)
    truth = formula(p).sum()
    assert_same(found, [truth.detach(), *torch.autograd.grad(truth, (x, w))], 1e-12)


def test_stablemax_svm_and_z_loss_are_their_dense_forms() -> None:
    x, w, y = draw()
    z = x @ w.t()
    sign = torch.full_like(z, -1.0).scatter(1, y[:, None], 1.0)
    score = (z.gather(1, y[:, None]).squeeze(1) - z.mean(1)) / z.var(1, unbiased=False).sqrt()
    truths = {
        "stablemax": stablemax_cross_entropy(z, y),
        "svm": (1.0 - sign * z).clamp(min=0.0).square().sum(1).mean(),
        "zloss": F.softplus(-score).mean(),
    }
    for loss, truth in truths.items():
        found = value_and_gradients(x, w, y, loss=loss)
        assert_same(found, [truth.detach(), *torch.autograd.grad(truth, (x, w), retain_graph=True)], 1e-10)


def test_z_penalty_and_extra_results() -> None:
    x, w, y = draw()
    y[4] = -100
    z, keep = x @ w.t(), y != -100
    for backend in ("reference", "eager"):
        loss, lse, accuracy = fused_linear_loss(x, w, y, z_penalty=0.5, return_lse=True, return_accuracy=True,
                                                reduction="sum", backend=backend)  # fmt: skip
        plain = fused_linear_loss(x, w, y, reduction="sum", backend="reference")
        torch.testing.assert_close(loss - plain, 0.5 * torch.logsumexp(z[keep], 1).square().sum())
        torch.testing.assert_close(lse, torch.where(keep, torch.logsumexp(z, 1), 0.0))
        torch.testing.assert_close(accuracy, (z.argmax(1) == y)[keep].float().mean())
        assert not lse.requires_grad


# --- chunks against whole logits -------------------------------------------------------------------------------------


@each_loss
def test_chunks_are_the_reference_in_float64(loss) -> None:
    x, w, y = draw()
    y[3] = -100
    for options in options_of(loss, 13, torch.float64, 40):
        found = value_and_gradients(x, w, y, **loss, **options)
        expected = value_and_gradients(x, w, y, backend="reference", **loss, **options)
        assert_same(found, expected, 1e-11)


@pytest.mark.skipif(not native.available(), reason="needs the compiled kernels")
@pytest.mark.parametrize("isa", native.info()["isas"])
@each_loss
def test_compiled_sweeps_in_float32(loss, isa) -> None:
    if loss.get("loss") == "zloss":
        pytest.skip("has no sweeps")
    x, w, y = draw(4, 1543, 16, torch.float32)
    for options in options_of(loss, 1543, torch.float32, 12):
        with native.use_isa(isa):
            found = value_and_gradients(x, w, y, backend="cpu", **loss, **options)
        wide = [t.detach().double().requires_grad_() for t in (x, w)]
        for name in ("bias", "class_weight"):
            if options[name] is not None:
                options[name] = options[name].detach().double().requires_grad_(options[name].requires_grad)
        assert_same(found, value_and_gradients(*wide, y, backend="reference", **loss, **options), 3e-5)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("shape", [(0, 5, 3), (1, 2, 1), (3, 1, 4), (5, 70_001, 2)], ids=str)
def test_odd_sizes(shape, backend) -> None:
    x, w, y = draw(*shape, dtype=torch.float32)
    found = value_and_gradients(x, w, y, backend=backend)
    expected = value_and_gradients(x, w, y, backend="reference")
    if shape[0]:
        assert_same(found, expected, 1e-5)
    else:  # where F.cross_entropy gives NaN
        assert [float(t.sum()) for t in (*found, *expected)] == [0.0] * 6


@pytest.mark.parametrize("backend", CPU)
def test_chunks_and_algorithms_agree(backend) -> None:
    x, w, y = draw(23, 17, dtype=torch.float32)
    whole = value_and_gradients(x, w, y, chunk=100, backend=backend)
    for chunk in (1, 7, 23):
        assert_same(value_and_gradients(x, w, y, chunk=chunk, backend=backend), whole, 2e-6)
    rows = fused_linear_loss(x, w, y, reduction="none", chunk=7, backend=backend)  # gradients from a second sweep
    assert_same([rows.mean().detach(), *torch.autograd.grad(rows.mean(), (x, w))], whole, 2e-6)


def test_several_tiles_of_columns(monkeypatch) -> None:
    monkeypatch.setattr("softgate.losses.fused_linear.passes._TILE", 12)
    x, w, y = draw()
    for loss in ("ce", "svm", "stablemax"):
        found = value_and_gradients(x, w, y, loss=loss, chunk=4)
        assert_same(found, value_and_gradients(x, w, y, loss=loss, backend="reference"), 1e-11)


def test_the_vocabulary_may_be_permuted() -> None:
    x, w, y = draw()
    order = torch.randperm(13)
    place = torch.empty_like(order).scatter(0, order, torch.arange(13))
    a, b = value_and_gradients(x, w, y), value_and_gradients(x, w.detach()[order].requires_grad_(), place[y])
    assert_same([b[0], b[1], b[2][place]], a, 1e-12)


# --- numbers that are not ordinary -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", CPU)
def test_gradients_of_certain_rows_do_not_vanish(backend) -> None:
    for margin in (30.0, 60.0, 80.0):
        w = torch.tensor([[margin], [0.0], [0.0]], requires_grad=True)
        loss = fused_linear_loss(torch.ones(1, 1), w, torch.tensor([0]), backend=backend)
        loss.backward()
        truth = 2.0 * torch.tensor(-margin, dtype=torch.float64).exp()
        torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
        torch.testing.assert_close(w.grad.flatten().double(), truth * torch.tensor([-1.0, 0.5, 0.5]).double(),
                                   rtol=1e-5, atol=0)  # fmt: skip


@pytest.mark.parametrize("backend", CPU)
def test_huge_logits(backend) -> None:
    w = torch.tensor([[1e4], [-1e4], [0.0], [9990.0]], requires_grad=True)
    rows = fused_linear_loss(torch.ones(4, 1), w, torch.arange(4), reduction="none", backend=backend)
    torch.testing.assert_close(rows, F.cross_entropy(w.t().expand(4, 4), torch.arange(4), reduction="none"),
                               atol=1e-6, rtol=1e-6)  # fmt: skip
    (gradient,) = torch.autograd.grad(rows.sum(), w)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("loss", ["ce", "stablemax", "focal"])
def test_masked_classes_and_rows_without_others(loss, backend) -> None:
    x, w, _ = draw(2, 5, dtype=torch.float32)
    bias = torch.tensor([0.0, -INF, 0.5, -INF, 0.0])
    y = torch.tensor([0, 2])
    found = value_and_gradients(x, w, y, bias=bias, loss=loss, backend=backend)
    kept = torch.tensor([0, 2, 4])
    fewer = value_and_gradients(x, w.detach()[kept].requires_grad_(), torch.tensor([0, 1]), bias=bias[kept], loss=loss)
    assert_same([found[0], found[1], found[2][kept]], fewer, 1e-6)
    assert not found[2][[1, 3]].any()
    alone = torch.where(torch.arange(5) == 0, 0.0, -INF)
    for value in value_and_gradients(x, w, torch.tensor([0, 0]), bias=alone, loss=loss, backend=backend):
        assert not value.any()


@pytest.mark.parametrize("backend", [*CPU, "reference"])
def test_nan_stays_in_its_row_and_ignored_rows_do_not_matter(backend) -> None:
    x, w, y = draw(6, 9, dtype=torch.float32)
    expected = fused_linear_loss(x, w, y, reduction="none", backend=backend)
    bad = x.detach().clone()
    bad[2] = NAN
    bad.requires_grad_()
    rows = fused_linear_loss(bad, w, y, reduction="none", backend=backend)
    assert rows.isnan().tolist() == [i == 2 for i in range(6)]
    y[2] = -100
    loss, gx, gw = value_and_gradients(bad, w, y, backend=backend)
    others = torch.arange(6) != 2
    torch.testing.assert_close(loss, expected[others].mean())
    assert not gx[2].any() and bool(gw.isfinite().all())
    y[:] = -100
    for value in value_and_gradients(bad, w, y, backend=backend):  # F.cross_entropy: NaN
        assert not value.any()


# --- arguments -------------------------------------------------------------------------------------------------------


def test_shift_predicts_later_tokens() -> None:
    x, w, _ = draw(12)
    x3, y = x.reshape(3, 4, 6), torch.randint(13, (3, 4))
    expected = fused_linear_loss(x3[:, :-1].reshape(9, 6), w, y[:, 1:].reshape(9))
    torch.testing.assert_close(fused_linear_loss(x3, w, y, shift=1), expected)
    rows = fused_linear_loss(x3, w, y, shift=2, reduction="none")
    assert rows.shape == (3, 4) and not rows[:, 2:].any() and bool((rows[:, :2] > 0).all())
    assert float(fused_linear_loss(x3, w, y, shift=9).detach()) == 0.0


def test_views_and_mixed_layouts() -> None:
    x, w, y = draw(4, 13, 6)
    strided = torch.randn(6, 4, dtype=torch.float64).t().requires_grad_()
    wide = torch.randn(13, 12, dtype=torch.float64)[:, ::2].requires_grad_()
    expanded = torch.randn(6, dtype=torch.float64).expand(4, 6)
    for a in (strided, expanded.requires_grad_()):
        assert_same(value_and_gradients(a, wide, y), value_and_gradients(a, wide, y, backend="reference"), 1e-12)
    single = fused_linear_loss(x[0], w, y[0])
    torch.testing.assert_close(single, F.cross_entropy(x[0] @ w.t(), y[0]))


def test_frozen_parts_get_no_gradient() -> None:
    x, w, y = draw()
    both = value_and_gradients(x, w, y)
    torch.testing.assert_close(torch.autograd.grad(fused_linear_loss(x, w.detach(), y), x)[0], both[1])
    torch.testing.assert_close(torch.autograd.grad(fused_linear_loss(x.detach(), w, y), w)[0], both[2])
    assert not fused_linear_loss(x.detach(), w.detach(), y).requires_grad
    with torch.no_grad():
        assert not fused_linear_loss(x, w, y).requires_grad


def test_bfloat16_sums_in_float32() -> None:
    x, w, y = draw(40, 300, 16, torch.float32)
    low = [t.detach().bfloat16().requires_grad_() for t in (x, w)]
    found = value_and_gradients(*low, y)
    assert [t.dtype for t in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert_same(found, value_and_gradients(*(t.detach().float().requires_grad_() for t in low), y), 5e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = value_and_gradients(low[0], w, y)  # a 16-bit activation and a float32 parameter
    assert [t.dtype for t in mixed] == [torch.float32, torch.bfloat16, torch.float32]
    assert_same(mixed, value_and_gradients(x, w, y), 2e-2)
    wide = fused_linear_loss(x, w, y, accum_dtype=torch.float64)
    torch.testing.assert_close(wide, fused_linear_loss(x.double(), w.double(), y), rtol=1e-12, atol=0)


def test_filtered_gradients_leave_out_improbable_classes() -> None:
    x, w, y = draw(8, 9000, 4)
    w = torch.cat((w.detach()[:5000], 1e-3 * w.detach()[5000:])).requires_grad_()
    bias = torch.where(torch.arange(9000) < 4096, 0.0, -40.0).double()
    y = y % 4096
    exact = value_and_gradients(x, w, y, bias=bias)
    filtered = value_and_gradients(x, w, y, bias=bias, grad_filter_eps=1e-6)
    assert_same(filtered, exact, 1e-6)
    assert exact[2][5000].any() and not filtered[2][4096:].any()


def test_selective_log_softmax() -> None:
    x, w, _ = draw(6)
    x, y = x.reshape(2, 3, 6), torch.tensor([[1, 2, -100], [4, 5, 6]])
    found = selective_log_softmax_fused(x, w, y, temperature=0.7)
    truth = torch.log_softmax(x @ w.t() / 0.7, -1).gather(-1, y.clamp(min=0)[..., None])[..., 0] * (y >= 0)
    torch.testing.assert_close(found, truth)
    weights = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), (x, w)),
                               torch.autograd.grad((truth * weights).sum(), (x, w)))  # fmt: skip


def test_backends_that_cannot_run_say_so() -> None:
    x, w, y = draw()
    with pytest.raises(StateError, match=r"cpu.*float32"):
        fused_linear_loss(x, w, y, backend="cpu")
    with pytest.raises(ArgumentValueError, match="process_group"):
        fused_linear_loss(x, w, y, loss="zloss", process_group=object())
    with pytest.raises(ArgumentTypeError, match=r"weight.*dtype"):
        fused_linear_loss(x, w.float(), y)


# --- autograd --------------------------------------------------------------------------------------------------------


def test_gradients_can_be_asked_for_twice() -> None:
    x, w, y = draw()
    loss = fused_linear_loss(x, w, y)
    first = torch.autograd.grad(loss, (x, w), torch.tensor(3.0).double(), retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(loss, (x, w), torch.tensor(-2.0).double())
    assert_same([-1.5 * g for g in second], kept, 1e-12)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_gradients_accumulate() -> None:
    x, w, y = draw(12)
    fused_linear_loss(x, w, y, reduction="sum").backward()
    whole, w.grad = w.grad, None
    for part in (slice(0, 5), slice(5, 12)):
        fused_linear_loss(x[part], w, y[part], reduction="sum").backward()
    torch.testing.assert_close(w.grad, whole)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_transforms_need_whole_logits(reduction, monkeypatch) -> None:
    x, w, y = draw()
    first = torch.autograd.grad(fused_linear_loss(x, w, y, reduction=reduction).sum(), x, create_graph=True)[0]
    truth = torch.autograd.grad(F.cross_entropy(x @ w.t(), y, reduction=reduction).sum(), x, create_graph=True)[0]
    torch.testing.assert_close(*(torch.autograd.grad(g.square().sum(), w)[0] for g in (first, truth)))
    for module in ("softgate.losses.fused_linear", "softgate.losses.fused_linear.autograd"):
        monkeypatch.setattr(f"{module}.DENSE_ENTRIES", 100)
    loss = fused_linear_loss(x, w, y, reduction=reduction).sum()
    with pytest.raises(StateError, match="second derivative"):
        torch.autograd.grad(loss, x, create_graph=True)
    each = torch.stack([x.detach(), 2 * x.detach()])
    with pytest.raises(StateError, match=r"torch\.func"):
        torch.func.vmap(lambda a: fused_linear_loss(a, w.detach(), y))(each)
    with pytest.raises(StateError, match="eager"):
        torch.func.vmap(lambda a: fused_linear_loss(a, w.detach(), y, backend="eager"))(each)
    losses = torch.func.vmap(lambda a: fused_linear_loss(a, w.detach(), y, backend="reference"))(each)
    assert losses.shape == (2,)


@pytest.mark.parametrize(
    "options",
    [{}, {"reduction": "none", "z_penalty": 0.1}, {"loss": "stablemax", "bias": True}, LOSSES["callable"]],
    ids=["mean", "none", "stablemax", "callable"],
)
def test_compiles_without_a_graph_break(options) -> None:
    torch._dynamo.reset()
    x, w, y = draw(dtype=torch.float32)
    y[1] = -100
    options = {**options, "bias": torch.randn(13, requires_grad=True) if options.get("bias") else None}

    def loss(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return fused_linear_loss(2 * x, w, y, **{**options, "bias": bias}).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    inputs = [t for t in (x, w, options["bias"]) if t is not None]
    found, expected = (f(x, w, options["bias"]) for f in (compiled, loss))
    gradients = (torch.autograd.grad(value, inputs) for value in (found, expected))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*gradients)


def test_operators_pass_opcheck() -> None:
    x, w, y = draw(5, 7, 3, torch.float32)
    words, floats, ints = "ce|mean||eager|", [1.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0], [-100, 0]
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    reduced = (x, w, None, y, None, words, floats, ints, [True, True, False])
    torch.library.opcheck(torch.ops.softgate.fused_linear_reduced.default, reduced, test_utils=tests)
    rows = (x, w, None, y, None, words.replace("mean", "none"), floats, ints)
    torch.library.opcheck(torch.ops.softgate.fused_linear_rows.default, rows, test_utils=tests)


# --- memory ----------------------------------------------------------------------------------------------------------


def allocations(run: Any) -> tuple[int, int]:
    """Largest single allocation and peak of the sum, in bytes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = largest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        largest, peak = max(largest, event.nbytes()), max(peak, live)
    return largest, peak


@pytest.mark.filterwarnings("ignore")  # the profiler's own
@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_logits_are_never_whole(backend, reduction) -> None:
    rows, classes, features, chunk = 512, 4000, 32, 64
    x, w, y = draw(rows, classes, features, torch.float32)

    def step() -> list[Tensor]:
        return value_and_gradients(x, w, y, chunk=chunk, reduction=reduction, backend=backend)

    step()
    largest, peak = allocations(step)
    block, results = 4 * chunk * classes, 4 * (rows + classes) * features
    assert largest <= block
    assert peak <= results + (1.25 if backend == "cpu" else 2.5) * block + 4 * 40 * rows


# --- module ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "classes", "expected"),
    [(256, 32_000, 84), (512, 32_000, 168), (256, 8_000, 128), (64, 100_000, 64), (4096, 32_000, 512), (8, 4, 128)],
)
def test_rows_per_chunk(features: int, classes: int, expected: int) -> None:
    x, w = torch.empty(2000, features), torch.empty(classes, features)
    settings = Settings()
    labels = torch.zeros(2000, dtype=torch.int64)
    p = Problem(x, w, None, None, labels, None, settings, TorchPasses(), Shard.of(w, None))
    assert chunk_rows(p) == expected


def test_module() -> None:
    head = FusedLinearLoss(6, 13, bias=True, loss="comp_sum", tau=1.5, class_weight=torch.ones(13))
    x, y = torch.randn(2, 4, 6), torch.randint(13, (2, 4))
    torch.testing.assert_close(
        head(x, y), fused_linear_loss(x, head.weight, y, bias=head.bias, loss="comp_sum", tau=1.5)
    )
    torch.testing.assert_close(head.logits(x), F.linear(x, head.weight, head.bias))
    other = FusedLinearLoss(6, 13, bias=True, loss="comp_sum", tau=1.5, class_weight=torch.zeros(13))
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other(x, y), head(x, y))
    assert "tau=1.5" in repr(head) and "num_classes=13" in repr(head)
    for wrong, word in (({"num_classes": 0}, "num_classes"), ({"taus": 1.0}, "taus"),
                        ({"weight": nn.Parameter(torch.ones(3, 6))}, "weight")):  # fmt: skip
        with pytest.raises(ArgumentValueError, match=word):
            FusedLinearLoss(**{"in_features": 6, "num_classes": 13, **wrong})


def test_tied_weights_add_their_gradients() -> None:
    embedding, tokens = nn.Embedding(13, 6), torch.randint(13, (3, 5))
    before = embedding.weight.detach().clone()
    head = FusedLinearLoss(6, 13, weight=embedding.weight, shift=1)
    assert torch.equal(embedding.weight, before)
    head(embedding(tokens), tokens).backward()
    found, embedding.weight.grad = embedding.weight.grad, None
    logits = embedding(tokens)[:, :-1] @ embedding.weight.t()
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    torch.testing.assert_close(found, embedding.weight.grad)
