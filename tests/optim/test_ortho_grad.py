"""OrthoGrad: geometry of the projection, being an optimizer in every respect, and bad input."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from softgate.optim import OrthoGrad, _projection, project_orthogonal_
from softgate.optim.ortho_grad import _bad_inputs

SHAPES = [(7, 5), (5,), (3, 2, 4)]


def make(shapes=SHAPES, dtype=torch.float32, scale: float = 1.0) -> list[nn.Parameter]:
    weights = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    for weight in weights:
        weight.grad = scale * torch.randn_like(weight)
    return weights


def cosine(w: torch.Tensor, g: torch.Tensor) -> float:
    w, g = w.detach().double().flatten(), g.double().flatten()
    return float(w @ g / (w.norm() * g.norm()))


@pytest.fixture(params=["numbers", "tensors"])
def route(request, monkeypatch):
    """The update with coefficients read on the host, and the one that accelerators and traces take."""
    if request.param == "tensors":
        monkeypatch.setattr(_projection, "_is_readable", lambda group: False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rescale", [True, False])
def test_every_tensor_becomes_orthogonal(route, dtype, rescale) -> None:
    weights = make(dtype=dtype)
    before = [w.grad.clone() for w in weights]
    project_orthogonal_(weights, rescale=rescale)
    eps = torch.finfo(dtype).eps
    for w, g in zip(weights, before, strict=True):
        assert abs(cosine(w, w.grad)) < 4 * eps
        sine = math.sqrt(1 - cosine(w, g) ** 2)
        assert float(w.grad.double().norm() / g.double().norm()) == pytest.approx(1 if rescale else sine, rel=8 * eps)
        direct = g.double() - (w.double() * g.double()).sum() / w.double().square().sum() * w.double()
        direct = direct / sine if rescale else direct
        torch.testing.assert_close(w.grad.double(), direct, rtol=4 * eps, atol=8 * eps * float(g.norm()))


def test_global_scope_projects_the_whole_vector(route) -> None:
    weights = make([(4, 3), (1,), (6,)])
    norm = math.sqrt(sum(float(w.grad.square().sum()) for w in weights))
    project_orthogonal_(weights, scope="global")
    assert abs(sum(float((w.detach() * w.grad).sum()) for w in weights)) < 1e-5 * norm
    assert math.sqrt(sum(float(w.grad.square().sum()) for w in weights)) == pytest.approx(norm, rel=1e-6)
    assert any(abs(cosine(w, w.grad)) > 1e-3 for w in weights)


def test_global_scope_over_several_dtypes(route) -> None:
    weights = make([(4, 3)]) + make([(6,)], torch.float64)
    project_orthogonal_(weights, scope="global")
    assert abs(sum(float((w.detach().double() * w.grad.double()).sum()) for w in weights)) < 1e-5


@settings(deadline=None)
@given(st.integers(2, 40), st.floats(1e-4, 10.0), st.floats(-30, 15), st.booleans(), st.integers(0, 10**6))
def test_nearly_parallel_and_tiny_gradients(size, across, exponent, negative, seed) -> None:
    """Cancellation and float32 underflow of the squares: still orthogonal, still of the right norm."""
    generator = torch.Generator().manual_seed(seed)
    w = nn.Parameter(torch.randn(size, generator=generator))
    parallel = w.detach() * (-1 if negative else 1)
    w.grad = ((parallel + across * torch.randn(size, generator=generator)) * 10.0**exponent).clone()
    norm = float(w.grad.double().norm())
    if abs(abs(cosine(w, w.grad)) - 1) < 1e-9:
        return
    project_orthogonal_([w])
    assert abs(cosine(w, w.grad)) < 2e-6
    assert float(w.grad.double().norm()) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_parallel_gradient_becomes_zero_not_noise(route, dtype, scope) -> None:
    w = nn.Parameter(torch.randn(50, dtype=dtype))
    w.grad = 3 * w.detach()
    project_orthogonal_([w], scope=scope)
    assert torch.equal(w.grad, torch.zeros_like(w))


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_zero_gradient_and_zero_weight(route, scope) -> None:
    w = nn.Parameter(torch.randn(5))
    w.grad = torch.zeros(5)
    project_orthogonal_([w], scope=scope)
    assert torch.equal(w.grad, torch.zeros(5))
    w = nn.Parameter(torch.zeros(5))
    w.grad = torch.randn(5)
    before = w.grad.clone()
    project_orthogonal_([w], scope=scope)
    torch.testing.assert_close(w.grad, before)


def test_nan_stays_in_its_tensor(route) -> None:
    weights = make()
    weights[0].grad[0, 0] = float("nan")
    project_orthogonal_(weights)
    assert bool(weights[0].grad.isnan().all())
    assert not any(bool(w.grad.isnan().any()) for w in weights[1:])


def test_complex_parameters_are_real_vectors(route) -> None:
    w = nn.Parameter(torch.randn(6, dtype=torch.complex64))
    w.grad = torch.randn(6, dtype=torch.complex64)
    norm = float(w.grad.norm())
    project_orthogonal_([w])
    assert abs(float((w.detach().conj() * w.grad).real.sum())) < 1e-5
    assert float(w.grad.norm()) == pytest.approx(norm, rel=1e-6)


def test_strided_parameters(route) -> None:
    w = nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    w.grad = torch.randn(2, 3, 4, 5)
    project_orthogonal_([w])
    assert abs(cosine(w, w.grad)) < 1e-6


def test_skipped_tensors() -> None:
    single, empty, none, kept = (nn.Parameter(torch.ones(shape)) for shape in ((1,), (0,), (3,), (4,)))
    single.grad, empty.grad, kept.grad = torch.ones(1), torch.ones(0), torch.arange(4.0)
    with pytest.warns(UserWarning, match="1 parameter.* single entry"):
        project_orthogonal_([single, empty, none, kept])
    assert single.grad.item() == 1.0 and none.grad is None and abs(cosine(kept, kept.grad)) < 1e-6
    project_orthogonal_([single, kept], exclude=[single])  # no warning
    project_orthogonal_([])


def test_excluded_parameters_keep_their_gradient() -> None:
    for exclude in (lambda p: p.ndim < 2, None):
        weights = make()
        bias = weights[1].grad.clone()
        project_orthogonal_(weights, exclude=exclude or [weights[1]])
        assert torch.equal(weights[1].grad, bias) and abs(cosine(weights[0], weights[0].grad)) < 1e-6


def test_sgd_steps_lengthen_the_weights_as_pythagoras_says() -> None:
    weights = make(dtype=torch.float64)
    optimizer = OrthoGrad(weights, torch.optim.SGD, lr=0.1)
    for _ in range(5):
        squares = [float(w.detach().square().sum()) for w in weights]
        for w in weights:
            w.grad = torch.randn_like(w)
        norms = [float(w.grad.square().sum()) for w in weights]
        optimizer.step()
        for w, square, norm in zip(weights, squares, norms, strict=True):
            assert float(w.detach().square().sum()) == pytest.approx(square + 0.01 * norm, rel=1e-12)


BASES = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.0}),
    (torch.optim.AdamW, {"lr": 0.01, "fused": True}),
    (torch.optim.Adagrad, {"lr": 0.01}),
    (torch.optim.RMSprop, {"lr": 0.01}),
]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=generator)
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(("base", "options"), BASES)
def test_equals_projecting_before_the_base_optimizer(base, options) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    twin = copy.deepcopy(model)
    train(model, OrthoGrad(model.parameters(), base, **options), 4)
    plain = base(twin.parameters(), **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        plain.zero_grad()
        twin(torch.randn(8, 4, generator=generator)).square().mean().backward()
        project_orthogonal_(twin.parameters())
        plain.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("base", "options"), BASES)
def test_state_dict_round_trip_continues_bit_identically(base, options) -> None:
    model = nn.Linear(4, 3)
    optimizer = OrthoGrad(model.parameters(), base, **options)
    train(model, optimizer, 3)
    stored = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=True)
    twin = nn.Linear(4, 3)
    twin.load_state_dict(loaded["model"])
    again = OrthoGrad(twin.parameters(), base, **{**options, "lr": 99.0})
    again.load_state_dict(loaded["optimizer"])
    assert again.param_groups[0]["lr"] == options["lr"]
    train(model, optimizer, 3, seed=1)
    train(twin, again, 3, seed=1)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    assert set(optimizer.state_dict()) == set(optimizer.base.state_dict())
    base(model.parameters(), **options).load_state_dict(optimizer.state_dict())  # the base optimizer can go on


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_are_whole(clone) -> None:
    model = nn.Linear(4, 3)
    optimizer = OrthoGrad(model.parameters(), torch.optim.AdamW, lr=0.01, exclude=[model.bias])
    train(model, optimizer, 2)
    twin, again = clone((model, optimizer))
    assert again.param_groups is again.base.param_groups and again.state is again.base.state
    train(model, optimizer, 2, seed=1)
    train(twin, again, 2, seed=1)
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)


def test_schedulers_and_groups() -> None:
    model, late = nn.Linear(4, 3), nn.Parameter(torch.randn(5))
    optimizer = OrthoGrad([{"params": [model.weight], "lr": 0.5}, {"params": [model.bias]}], torch.optim.SGD, lr=0.1)
    schedule = StepLR(optimizer, 1, gamma=0.5)
    train(model, optimizer, 1)
    schedule.step()
    assert [group["lr"] for group in optimizer.base.param_groups] == [0.25, 0.05]
    optimizer.add_param_group({"params": [late], "lr": 1.0})
    assert len(optimizer.param_groups) == len(optimizer.base.param_groups) == 3
    late.grad = torch.randn(5)
    norm = float(late.detach().norm())
    optimizer.step()
    assert abs(cosine(late, late.grad)) != 1.0 and float(late.detach().norm()) > norm
    CosineAnnealingLR(optimizer, 10)
    named = OrthoGrad(model.named_parameters(), torch.optim.SGD, lr=0.1)
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    assert "OrthoGrad(rescale=True, scope='tensor'" in repr(named)


def test_closures_see_projected_gradients() -> None:
    w = nn.Parameter(torch.randn(6))
    start = float(w.detach().norm())
    optimizer = OrthoGrad([w], torch.optim.LBFGS, lr=0.1, max_iter=3)
    target = torch.randn(6)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (w - target).square().sum()
        loss.backward()
        return loss

    first = closure().item()
    assert optimizer.step(closure).item() == pytest.approx(first)
    assert abs(float(w.detach().norm()) - start) < 0.2 * start
    assert (w - target).square().sum().item() < first


def test_gradscaler() -> None:
    model = nn.Linear(4, 3)
    twin = copy.deepcopy(model)
    optimizer = OrthoGrad(model.parameters(), torch.optim.SGD, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x = torch.randn(8, 4)
    scaler.scale(model(x).square().mean()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    plain = OrthoGrad(twin.parameters(), torch.optim.SGD, lr=0.1)
    twin(x).square().mean().backward()
    plain.step()
    torch.testing.assert_close(model.weight, twin.weight)
    model.weight.grad.fill_(float("inf"))
    before = model.weight.detach().clone()
    scaler.step(optimizer)  # skipped: the gradient overflowed
    assert torch.equal(model.weight, before)


def test_single_entries_are_announced_once() -> None:
    gain, w = nn.Parameter(torch.ones(1)), nn.Parameter(torch.randn(3))
    with pytest.warns(UserWarning, match="single entry"):
        optimizer = OrthoGrad([gain, w], torch.optim.SGD, lr=0.1)
    gain.grad, w.grad = torch.ones(1), torch.randn(3)
    optimizer.step()  # warnings are errors here
    assert gain.item() == pytest.approx(0.9)


def test_nothing_changes_before_a_sparse_gradient_is_refused() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    dense = make([(4,)])[0]
    before = dense.grad.clone()
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"dense gradients.*\(5, 3\)"):
        project_orthogonal_([dense, table.weight])
    assert torch.equal(dense.grad, before)


@pytest.mark.parametrize(("args", "kwargs", "error", "word"), _bad_inputs())
def test_bad_calls(args, kwargs, error, word) -> None:
    assert len(list(_bad_inputs())) >= 25
    with pytest.raises(error, match=word):
        project_orthogonal_(*args, **kwargs)


W = torch.ones(3, requires_grad=True)
SGD = torch.optim.SGD
BAD = [
    *(((v, SGD), {}, TypeError, "params") for v in (None, 3, 1.0, object(), W)),
    *(((v, SGD), {}, ValueError, "params") for v in ([], (), iter([]))),
    *(
        (([W], v), {}, TypeError, "base_optimizer_cls")
        for v in (None, "SGD", 3, nn.Linear, SGD([W], lr=1.0), int, [SGD])
    ),
    (([W], OrthoGrad), {}, ValueError, "base_optimizer_cls"),
    *((([W], SGD), {"rescale": v}, TypeError, "rescale") for v in (None, 1, "yes", 0.0)),
    *((([W], SGD), {"scope": v}, ValueError, "scope") for v in ("row", "", "Tensor")),
    *((([W], SGD), {"scope": v}, TypeError, "scope") for v in (None, 1, ["tensor"])),
    *((([W], SGD), {"exclude": v}, TypeError, "exclude") for v in (3, 1.0, [1.0], [None])),
    *((([W], SGD), {v: 1.0}, TypeError, v) for v in ("beta", "eps", "learning_rate")),
]


@pytest.mark.parametrize(("args", "kwargs", "error", "word"), BAD)
def test_bad_optimizers(args, kwargs, error, word) -> None:
    assert len(BAD) >= 25
    with pytest.raises(error, match=word):
        OrthoGrad(*args, **kwargs)
