"""Lipschitz bounds: the constraints behind them, closed forms, brute force, invariances, solvers, models, bad input."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softgate.activations import GroupSort, Householder, MaxMin, group_sort, householder
from softgate.diagnostics import ImplicitModel, LipschitzCertificate, lipschitz_bound
from softgate.diagnostics._observe.heads import lipschitz_product, small_heads
from softgate.diagnostics.lipschitz import barrier, chain, networks
from softgate.diagnostics.lipschitz.certificate import reduced_form
from softgate.diagnostics.lipschitz.increments import Activation
from softgate.errors import MissingExtraError


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64) / math.sqrt(shape[-1])


def _network(*widths: int) -> list[Tensor]:
    return [_draw(after, before) for before, after in itertools.pairwise(widths)]


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach(), 2))


@pytest.mark.parametrize("kind", ["groupsort", "householder"])
@pytest.mark.parametrize("size", [2, 3])
def test_the_lemmas_of_the_paper(kind: str, size: int) -> None:
    x, y = torch.randn(2, 4000, 6, dtype=torch.float64)
    v = torch.nn.functional.normalize(_draw(6 // size, size), dim=1)
    f = (lambda x: group_sort(x, size)) if kind == "groupsort" else (lambda x: householder(x, v))
    dx, dphi = x - y, f(x) - f(y)
    kept = (
        torch.ones(size, size).double()
        if kind == "groupsort"
        else torch.eye(size).double() - v[:, :, None] * v[:, None]
    )
    lam, (gam, nu, tau) = torch.rand(6 // size, dtype=torch.float64), torch.randn(3, 6 // size, dtype=torch.float64)
    blocks = kept.expand(6 // size, size, size)
    T, P, S = (torch.block_diag(*(scale[:, None, None] * blocks)) for scale in (gam, nu, tau))
    alone = [[T - 2 * S, P + S], [P + S, -T - 2 * P]]
    T = T + torch.diag(lam.repeat_interleave(size))
    z = torch.cat((dx, dphi), 1)
    for (upper, lower), least in (((alone[0], alone[1]), None), (([T - 2 * S, P + S], [P + S, -T - 2 * P]), 0.0)):
        values = torch.einsum("bi,ij,bj->b", z, torch.cat((torch.cat(upper, 1), torch.cat(lower, 1))), z)
        if least is None:
            torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-10)
        else:
            assert float(values.min()) >= -1e-10 and float(values.max()) > 0.1


def test_the_certificate_satisfies_the_inequality_of_the_paper() -> None:
    """With λ and ρ of the certificate, γ very negative and ν = -γ, the matrix with T, P, S is negative semidefinite."""
    weights = _network(5, 6, 6, 3)
    found = lipschitz_bound(weights)
    lam = found.multipliers[0]
    n, widths = 5, [6, 6]
    size = n + sum(widths)
    A, B, C = torch.zeros(12, size).double(), torch.zeros(12, size).double(), torch.zeros(3, size).double()
    A[:6, :5], A[6:, 5:11], B[:, 5:], C[:, 11:] = weights[0], weights[1], torch.eye(12), weights[2]
    sums = torch.block_diag(*[torch.ones(2, 2).double()] * 6)
    large = 1e6 * float(lam.max())
    T = torch.diag(lam.repeat_interleave(2)) - large * sums
    P, S = large * sums, torch.zeros(12, 12).double()
    start = torch.diag(torch.cat((torch.ones(5), torch.zeros(12)))).double()
    lmi = A.mT @ (T - 2 * S) @ A + A.mT @ (P + S) @ B + B.mT @ (P + S) @ A - B.mT @ (T + 2 * P) @ B + C.mT @ C
    assert float(torch.linalg.eigvalsh(lmi - found.rho * (1 + 1e-3) * start)[-1]) < 1e-6
    assert float(torch.linalg.eigvalsh(lmi - found.rho * 0.97 * start)[-1]) > 1e-4


def test_closed_forms() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    assert lipschitz_bound([eye, eye]).value == pytest.approx(1.0, abs=1e-6)
    assert lipschitz_bound([eye, eye], activation="maxmin_rr").value == pytest.approx(math.sqrt(2), abs=1e-5)
    assert lipschitz_bound([eye, eye], activation="relu").value == pytest.approx(1.0, abs=1e-5)
    assert lipschitz_bound([eye[:1], eye[:, :1]], activation="slope", slope=(-0.5, 3)).value == pytest.approx(
        3, rel=1e-5
    )
    single = _draw(3, 5)
    assert lipschitz_bound([single]).value == pytest.approx(_norm(single), rel=1e-9)
    rows = single.abs().sum(1)
    assert lipschitz_bound([single], "linf", output_row=1).value == pytest.approx(float(rows[1]), rel=1e-9)
    every = lipschitz_bound([single], "linf")
    assert every.value == pytest.approx(float(rows.max()), rel=1e-9) and every.verify()
    assert every.rows == pytest.approx(rows.tolist(), rel=1e-9) and every.rho == every.value
    assert 1.0 <= lipschitz_bound([eye, eye], "linf").value <= 1.5


def _jacobians(weights: list[Tensor]) -> list[Tensor]:
    """Every product that some orders in the pairs of MaxMin could give, whether an input reaches it or not."""
    flips = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]], dtype=torch.float64)
    found = [weights[0]]
    for weight in weights[1:]:
        patterns = itertools.product(range(2), repeat=weight.shape[1] // 2)
        sorts = [torch.block_diag(*(flips[i] for i in pattern)) for pattern in patterns]
        found = [weight @ sort @ before for sort in sorts for before in found]
    return found


@pytest.mark.parametrize("widths", [(3, 4, 2), (3, 4, 6, 2), (2, 6, 1)], ids=str)
def test_no_order_of_the_pairs_exceeds_the_bound(widths: tuple[int, ...]) -> None:
    weights = _network(*widths)
    full, diagonal = (lipschitz_bound(weights, multiplier=kind) for kind in ("full", "diagonal"))
    largest = max(map(_norm, _jacobians(weights)))
    assert largest <= full.value <= diagonal.value * (1 + 1e-6) <= diagonal.product * (1 + 2e-6)
    assert 0 < full.lower_bound <= largest * (1 + 1e-9)
    assert full.gap == pytest.approx(full.value / full.lower_bound - 1)
    row = lipschitz_bound(weights, "linf", output_row=0)
    assert max(float(j[0].abs().sum()) for j in _jacobians(weights)) <= row.value <= row.product * (1 + 1e-6)
    assert row.value <= lipschitz_bound(weights, "linf", output_row=0, multiplier="diagonal").value * (1 + 1e-4)


def test_no_set_of_active_neurons_exceeds_the_bound() -> None:
    first, second = _network(3, 6, 2)
    masks = [torch.tensor(mask).double() for mask in itertools.product((0.0, 1.0), repeat=6)]
    largest = max(_norm(second @ (mask[:, None] * first)) for mask in masks)
    found = lipschitz_bound([first, second], activation="relu")
    assert largest <= found.value < 0.95 * found.product and found.verify()
    wider = lipschitz_bound([first, second], activation="slope", slope=(-0.5, 1.0))
    assert found.value < wider.value <= wider.product


def test_the_rewritten_maxmin_is_bounded_more_loosely() -> None:
    weights = _network(4, 6, 6, 3)
    assert lipschitz_bound(weights, activation="maxmin_rr").value > 1.05 * lipschitz_bound(weights).value


def test_invariances() -> None:
    first, second, third = _network(5, 6, 6, 3)
    value = lipschitz_bound([first, second, third]).value
    swapped = second[:, [1, 0, 2, 3, 5, 4]]
    turn = torch.linalg.qr(_draw(5, 5)).Q
    for weights in ([first @ turn, second, third], [first, swapped, third], [-first, second, third]):
        assert lipschitz_bound(weights).value == pytest.approx(value, rel=1e-4)
    assert lipschitz_bound([1e4 * first, 1e-7 * second, third]).value == pytest.approx(1e-3 * value, rel=1e-4)
    direct = lipschitz_bound([first, second, third], activation="householder", v=[1.0, -1.0])
    assert direct.value == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"activation": "groupsort", "group_size": 3}], ids=["maxmin", "threes"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_methods_agree(options: dict[str, object], norm: str) -> None:
    weights = [w.numpy() for w in _network(5, 6, 6, 2)]
    common = {**options, "norm": norm, "multiplier": "diagonal", "output_row": None if norm == "l2" else 1}
    barrier_, scaling = (lipschitz_bound(weights, method=method, **common) for method in ("barrier", "scaling"))
    assert barrier_.value == pytest.approx(scaling.value, rel=1e-3)
    assert barrier_.verify() and scaling.verify() and scaling.method == "scaling"


def test_cvxpy_agrees() -> None:
    pytest.importorskip("cvxpy")
    weights = _network(4, 6, 6, 2)
    for options in ({}, {"multiplier": "diagonal"}, {"norm": "linf", "output_row": 0}):
        found = lipschitz_bound(weights, method="cvxpy", **options)
        assert found.verify() and found.value == pytest.approx(lipschitz_bound(weights, **options).value, rel=1e-3)


def test_a_missing_cvxpy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cvxpy", None)
    with pytest.raises(MissingExtraError, match="cvxpy"):
        lipschitz_bound(_network(2, 2, 2), method="cvxpy")


def test_factors_are_convex_and_their_gradients_right() -> None:
    network = networks.Network("feedforward", tuple(_network(5, 6, 9, 4)), (Activation("groupsort", 3),) * 2)
    for norm, row in (("l2", None), ("linf", 1)):
        problem = networks.chain_of(network, norm, row)
        logs, along = torch.randn(2, sum(problem.sizes()), dtype=torch.float64)
        value, gradient = problem.smooth(logs, 4.0)
        step = 1e-5
        slope = (problem.smooth(logs + step * along, 4.0)[0] - problem.smooth(logs - step * along, 4.0)[0]) / (2 * step)
        assert slope == pytest.approx(float(gradient @ along), rel=1e-7)
        assert value >= math.log(problem.bound(logs))
        line = [math.log(problem.bound(logs + t * along)) for t in torch.linspace(-3, 3, 31, dtype=torch.float64)]
        assert float(torch.tensor(line).diff(n=2).min()) >= -1e-9


def test_the_linear_system_of_a_step_is_that_of_the_definition() -> None:
    seen, fixed = _draw(3, 5), torch.zeros(5, 5, dtype=torch.float64)
    own, of = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([1, 2, 2])
    problem = barrier.Inequality(seen, own, of, fixed, torch.ones(3, dtype=torch.float64))
    parts = [problem.linear(unit) for unit in torch.eye(3, dtype=torch.float64)]
    inverse, dual = (m @ m.mT for m in (_draw(5, 5), _draw(5, 5)))
    expected = torch.stack([torch.stack([(a @ inverse @ b @ dual).trace() for b in parts]) for a in parts])
    torch.testing.assert_close(problem.normal_matrix(inverse, dual), expected)
    torch.testing.assert_close(problem.adjoint(dual), torch.stack([(a * dual).sum() for a in parts]))


def test_an_early_end_still_proves_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = _network(5, 6, 6, 3)
    value = lipschitz_bound(weights).value
    monkeypatch.setattr(barrier, "_MOST", 3)
    monkeypatch.setattr(chain, "_ORDERS", (4.0,))
    for options in ({}, {"method": "scaling", "multiplier": "diagonal"}, {"norm": "linf", "output_row": 0}):
        found = lipschitz_bound(weights, **options)
        assert not found.converged and found.verify()
        assert found.norm == "linf" or found.value > value * 1.0001


def test_a_certificate_that_claims_too_much_is_refused() -> None:
    weights = _network(4, 6, 2)
    for options in ({}, {"multiplier": "diagonal", "method": "scaling"}, {"norm": "linf"}, {"split": 1}):
        found = lipschitz_bound(weights, **options)
        assert found.verify() and not replace(found, value=found.value * 0.999).verify()
    proof = lipschitz_bound(weights).proofs[0]
    assert math.isinf(replace(proof, multipliers=-proof.multipliers).bound())
    assert math.isinf(replace(proof, multipliers=0 * proof.multipliers).bound())


def test_blocks() -> None:
    weights = _network(5, 6, 6, 6, 3)
    whole = lipschitz_bound(weights)
    halves, layers = (lipschitz_bound(weights, split=k) for k in (2, 1))
    assert whole.value < halves.value < layers.value == pytest.approx(layers.product, rel=1e-6)
    assert halves.verify() and math.prod(halves.rows) == pytest.approx(halves.value)
    assert lipschitz_bound(weights, split=9).value == whole.value
    shallow = lipschitz_bound(weights, activation="slope", slope=(0, 0.5), split=1)
    assert shallow.value == pytest.approx(shallow.product, rel=1e-6)


def test_large_networks_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softgate.diagnostics.lipschitz.bounding_network._LARGEST", 8)
    found = lipschitz_bound(_network(5, 6, 6, 6, 3))
    assert found.factor == 1.0 and len(found.proofs) == 2 and found.verify()


def test_residual_networks() -> None:
    blocks, ends = [_draw(4, 4), _draw(4, 4)], (_draw(4, 3), _draw(2, 4))
    found = lipschitz_bound(blocks, residual=True)
    assert found.lower_bound <= found.value < lipschitz_bound(blocks, residual=True, multiplier="diagonal").value
    assert found.value <= found.product == pytest.approx((1 + _norm(blocks[0])) * (1 + _norm(blocks[1])))
    eye = torch.eye(4, dtype=torch.float64)
    assert lipschitz_bound(blocks, residual=[eye, eye]).value == pytest.approx(found.value, rel=1e-6)
    wide = [_draw(6, 4), _draw(8, 4)]
    back = [_draw(4, 6), _draw(4, 8)]
    for activation in ("maxmin", "relu"):
        general = lipschitz_bound(wide, activation=activation, residual=back)
        assert general.lower_bound <= general.value < general.product and general.verify()
    inner = lipschitz_bound([ends[0], *blocks, ends[1]], residual="inner")
    assert inner.lower_bound <= inner.value <= _norm(ends[0]) * found.value * _norm(ends[1])
    row = lipschitz_bound([ends[0], *blocks, ends[1]], "linf", residual="inner", output_row=0)
    assert row.lower_bound <= row.value and row.verify()


@pytest.mark.parametrize("activation", ["maxmin", "relu", "slope"])
def test_implicit_models(activation: str) -> None:
    loop = _draw(6, 6)
    model = ImplicitModel(0.6 * loop / _norm(loop), _draw(6, 3), _draw(2, 6))
    options = {"slope": (0.3, 1.2)} if activation == "slope" else {}
    found = lipschitz_bound(model, activation=activation, **options)
    assert found.lower_bound <= found.value <= found.product and found.verify()
    assert lipschitz_bound(model._replace(W_out=None), activation=activation, **options).verify()
    if activation == "maxmin":
        assert found.value < lipschitz_bound(model, multiplier="diagonal").value
        # a scaling of the state changes nothing, and the norm of W says little
        scale = torch.tensor([1e3, 1e3, 1.0, 1.0, 1e-3, 1e-3], dtype=torch.float64)
        scaled = ImplicitModel(scale[:, None] * model.W / scale, scale[:, None] * model.U, model.W_out / scale)
        again = lipschitz_bound(scaled)
        assert again.value == pytest.approx(found.value, rel=1e-3) and math.isinf(again.product)
    with pytest.raises(RuntimeError, match="one solution"):
        lipschitz_bound(model._replace(W=3.0 * torch.eye(6)), activation=activation, **options)


def test_modules_are_read() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 6), MaxMin(), nn.Dropout(), nn.Linear(6, 6), GroupSort(3), nn.Linear(6, 2))
    found = lipschitz_bound(model)
    linear = [model[0].weight, model[3].weight, model[5].weight]
    assert found.value <= lipschitz_bound(model, multiplier="diagonal").value <= math.prod(map(_norm, linear))
    same = nn.Sequential(model[0], MaxMin(), nn.Linear(6, 2, bias=False))
    listed = lipschitz_bound([same[0].weight, same[2].weight])
    assert lipschitz_bound(same).value == pytest.approx(listed.value, rel=1e-6)
    assert model[0].weight.dtype is torch.float32 and model.training
    turned = Householder(6, 3, learnable=False)
    nn.init.normal_(turned.v)
    mirrored = nn.Sequential(model[0], turned, same[2])
    listed = lipschitz_bound([same[0].weight, same[2].weight], activation="householder", v=turned.v)
    assert lipschitz_bound(mirrored).value == pytest.approx(listed.value, rel=1e-6)
    mixed = lipschitz_bound(
        nn.Sequential(nn.ReLU(), model[0], nn.Tanh(), nn.Linear(6, 3), nn.LeakyReLU(0.1)), input_shape=(5,)
    )
    assert mixed.lower_bound <= mixed.value and mixed.verify()


@pytest.mark.parametrize("make", [lambda: MaxMin(1), lambda: Householder(4, 2, dim=1)], ids=["maxmin", "householder"])
def test_convolutions_are_written_out(make) -> None:
    torch.manual_seed(1)
    act = make()
    if isinstance(act, Householder):
        nn.init.normal_(act.v)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), act, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    found = lipschitz_bound(model, input_shape=(1, 4, 4))
    assert found.lower_bound <= found.value < found.product and found.verify()
    # the same with the matrices of the convolution, grouped by pixel
    basis = torch.eye(16).reshape(16, 1, 4, 4)
    wide = model.requires_grad_(False)
    first = (wide[0](basis) - wide[0].bias[:, None, None]).permute(0, 2, 3, 1).flatten(1).T
    channels = torch.eye(64).reshape(64, 4, 4, 4).permute(0, 3, 1, 2)
    second = (wide[4](wide[3](wide[2](channels))) - wide[4].bias).T
    options = {"activation": "householder", "v": act.v.repeat(16, 1)} if isinstance(act, Householder) else {}
    assert lipschitz_bound([first, second], **options).value == pytest.approx(found.value, rel=1e-5)


def test_degenerate_networks() -> None:
    first, second = _network(4, 6, 2)
    zero = lipschitz_bound([torch.zeros(6, 4), second])
    assert zero.value == zero.lower_bound == zero.gap == 0.0 and zero.verify()
    for options in ({}, {"multiplier": "diagonal", "method": "scaling"}, {"norm": "linf"}):
        assert lipschitz_bound([first, torch.zeros(2, 6)], **options).value == 0.0
    dead = first.clone()
    dead[:2] = 0.0
    dead[:, 1] = 0.0
    smaller = lipschitz_bound([dead[2:][:, [0, 2, 3]], second[:, 2:]])
    assert lipschitz_bound([dead, second]).value == pytest.approx(smaller.value, rel=1e-4)
    for norm in ("l2", "linf"):
        found = lipschitz_bound([dead, second], norm, output_row=0)
        assert found.verify() and found.lower_bound <= found.value
    half = [first.bfloat16(), second.half()]
    assert lipschitz_bound(half).value == lipschitz_bound([half[0].double(), half[1].double()]).value
    assert lipschitz_bound([first.T.contiguous().T.numpy(), second]).value == lipschitz_bound([first, second]).value
    assert lipschitz_bound([first, second[:1]]).verify()


def test_the_report_knows_the_activations() -> None:
    head = nn.Sequential(nn.Linear(4, 6), MaxMin(), nn.Linear(6, 6), Householder(6), nn.Linear(6, 2))
    ((_, module, weights),) = small_heads(head)
    product = lipschitz_product(module, weights)
    assert product == pytest.approx(lipschitz_bound(head).product, rel=1e-6) and len(weights) == 3


def test_the_radius_of_a_decision() -> None:
    found = lipschitz_bound([torch.eye(2)])
    assert found.radius(2.0) == pytest.approx(math.sqrt(2), rel=1e-6)
    assert (
        isinstance(found, LipschitzCertificate)
        and len(reduced_form(found.proofs[0].network, "full", "l2", None).seen) == 0
    )


@pytest.mark.parametrize(
    ("model", "options", "error", "word"),
    [
        ([], {}, ValueError, "empty"),
        ("weights", {}, TypeError, "model"),
        (3, {}, TypeError, "model"),
        ([np.ones((3, 2)), np.ones((2, 3))], {}, ValueError, "group_size"),
        ([np.ones((4, 2)), np.ones((2, 3))], {}, ValueError, "weight 1"),
        ([np.ones(4)], {}, ValueError, "weight 0"),
        ([np.full((2, 2), np.nan)], {}, ValueError, "finite"),
        ([np.ones((2, 2)) * 1j], {}, TypeError, "real"),
        ([np.eye(2)], {"norm": "l1"}, ValueError, "norm"),
        ([np.eye(2)], {"activation": "gelu"}, ValueError, "activation"),
        ([np.eye(2)], {"method": "mosek"}, ValueError, "method"),
        ([np.eye(2)], {"multiplier": "none"}, ValueError, "multiplier"),
        ([np.eye(2)], {"tol": 0.0}, ValueError, "tol"),
        ([np.eye(2)], {"output_row": 2}, ValueError, "output_row"),
        ([np.eye(2)], {"output_row": True}, TypeError, "output_row"),
        ([np.eye(2)] * 2, {"split": 1, "norm": "linf"}, ValueError, "split"),
        ([np.eye(2)] * 2, {"split": 0}, ValueError, "split"),
        ([np.eye(2)] * 2, {"method": "scaling"}, ValueError, "scaling"),
        ([np.eye(2)] * 2, {"activation": "householder"}, ValueError, "v"),
        ([np.eye(2)] * 2, {"activation": "householder", "v": np.zeros(2)}, ValueError, "norm 0"),
        ([np.eye(4)] * 2, {"activation": "householder", "v": np.ones((3, 2))}, ValueError, "v"),
        ([np.eye(4)] * 3, {"activation": "householder", "v": [np.ones(2)]}, ValueError, "v"),
        ([np.eye(2)] * 2, {"activation": "slope", "slope": (1, 0)}, ValueError, "slope"),
        ([np.eye(2)] * 2, {"activation": "slope", "slope": 1.0}, TypeError, "slope"),
        ([np.eye(2)] * 2, {"residual": "outer"}, ValueError, "residual"),
        ([np.eye(2)] * 2, {"residual": "inner"}, ValueError, "residual"),
        ([np.eye(2)] * 2, {"residual": [np.eye(2)]}, TypeError, "residual"),
        ([np.ones((4, 2))], {"residual": True}, ValueError, "block 0"),
        (ImplicitModel(np.ones((2, 3)), np.eye(2)), {}, ValueError, "W"),
        (ImplicitModel(np.eye(2) / 2, np.eye(2), np.eye(3)), {}, ValueError, "W_out"),
        (nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1)), {}, TypeError, "Softmax"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), {}, ValueError, "input_shape"),
        (nn.Sequential(nn.Linear(2, 2)), {"residual": True}, ValueError, "residual"),
        (nn.Sequential(nn.Linear(2, 3), MaxMin()), {}, ValueError, "group_size"),
        (nn.Sequential(nn.Linear(2, 2), MaxMin(0)), {}, ValueError, "batch"),
        (nn.Linear(2, 2, device="meta"), {}, ValueError, "meta"),
    ],
    ids=lambda value: None if isinstance(value, str | type) else "",
)  # fmt: skip
def test_bad_input(model, options, error, word) -> None:
    with pytest.raises(error, match=word):
        lipschitz_bound(model, **options)
