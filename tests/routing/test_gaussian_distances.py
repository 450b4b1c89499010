"""Between a fit and the truth: Voronoi cells and losses, Hellinger distance, rates, identifiability."""

import numpy as np
import pytest
import torch
from gaussian_cases import CROSSING, PLANE

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.routing import (
    MixingMeasure,
    convergence_rate,
    gate_identifiability,
    hellinger,
    pin_like,
    voronoi_cells,
    voronoi_loss,
)


def perturbed(measure, size=0.02, seed=0, **options):
    rng = np.random.default_rng(seed)
    moved = {name: getattr(measure, name) + size * rng.normal(size=getattr(measure, name).shape) for name in "ab"}
    return measure.with_options(**moved, beta0=measure.beta0 + size * rng.normal(size=measure.n_experts), **options)


def doubled(measure, epsilon, **options):
    """Every expert but the last twice, half the mass each, moved apart by epsilon."""
    at = [*range(measure.n_experts - 1)] * 2 + [measure.n_experts - 1]
    side = np.array([1.0] * (measure.n_experts - 1) + [-1.0] * (measure.n_experts - 1) + [0.0])
    half = np.where(side == 0, 0, np.log(0.5))
    return measure.with_options(
        beta0=measure.beta0[at] + half,
        beta1=measure.beta1[at],
        a=measure.a[at] + epsilon * side[:, None],
        b=measure.b[at],
        var=measure.var[at],
        **options,
    )


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_the_loss_is_zero_for_the_truth_in_any_order_and_pinning(order):
    fitted = PLANE.permute(order).normalise()
    assert voronoi_cells(fitted, PLANE).tolist() == order
    assert voronoi_loss(fitted, PLANE) == pytest.approx(0, abs=1e-13)
    assert voronoi_loss(fitted, PLANE, pin="as_given") > 0.1 or order == [0, 1, 2]
    np.testing.assert_allclose(pin_like(fitted, PLANE).beta1, PLANE.beta1[order], atol=1e-13)


def test_losses_by_hand():
    truth = MixingMeasure([np.log(2), 0], [1, 0], [1, -1], [0, 0], [1, 1])
    fitted = truth.with_options(a=[1.5, -1], b=[0, 0.25])
    assert voronoi_loss(fitted, truth) == pytest.approx(2 * 0.5 + 0.25)
    assert voronoi_loss(fitted, truth.with_options(top_k=1)) == pytest.approx(1.0)  # the larger of both cells
    over = MixingMeasure(np.log([1, 1.5, 1]), [1, 1, 0], [1.5, 1, -1], [0, 0.5, 0], [1, 1.3, 1])
    cell = 0.5**2 + 1.5 * (0.5**4 + 0.3**2)
    assert voronoi_loss(over, truth, "over") == pytest.approx(cell + 0.5)
    assert voronoi_loss(over, truth, "activation_over") == pytest.approx(0.5**2 + 1.5 * (0.5**4 + 0.3**2) + 0.5)
    warm = fitted.with_options(temperature=2.0)
    mass = np.sqrt(2)
    expected = mass * (1 + 0.25) + (1 + 0.0625) + 2 - mass
    assert voronoi_loss(warm, truth, "dense_to_sparse", order=2) == pytest.approx(expected)


def test_an_empty_cell_counts_its_mass():
    truth = MixingMeasure([1, 0], [5, 0], [9, 0], [0, 0], [1, 1])
    near_last = truth.with_options(beta0=[0, 0], beta1=[0, 0], a=[0.1, 0])
    assert voronoi_cells(near_last, truth).tolist() == [1, 1]
    # both fitted experts have mass 1 where the truth has one: 0.1^(4/2) for a, and masses 2 - 1 and e
    assert voronoi_loss(near_last, truth, "over") == pytest.approx(0.1**2 + 1 + np.e)


def test_selections_of_cells():
    sparse = PLANE.with_options(top_k=2)
    over = doubled(PLANE, 0.01)
    with_singles = voronoi_loss(over, sparse, "over", k_selected=3)
    assert 0 < with_singles < voronoi_loss(over, sparse, "over", k_selected=4) + 1
    assert np.isnan(voronoi_loss(over, sparse, "over", k_selected=2))
    fitted = perturbed(PLANE)
    assert voronoi_loss(fitted, sparse, "over", k_selected=2) == pytest.approx(voronoi_loss(fitted, sparse))
    assert voronoi_loss(fitted, PLANE, "over") == pytest.approx(voronoi_loss(fitted, PLANE))


def test_losses_are_non_negative_and_do_not_depend_on_the_order():
    fitted = doubled(perturbed(PLANE), 0.3)
    for kind in ("over", "dense_to_sparse", "activation_over"):
        loss = voronoi_loss(fitted, PLANE, kind)
        assert loss > 0
        for order in ([4, 3, 2, 1, 0], [1, 0, 3, 4, 2]):
            assert voronoi_loss(fitted.permute(order), PLANE, kind) == pytest.approx(loss)


def test_cells_of_four_need_an_exponent():
    truth = MixingMeasure([0, 0], [9, 0], [9, 0], [0, 0], [1, 1])
    fitted = MixingMeasure(np.zeros(5), [9, 0, 0, 0, 0], [9, 0, 0.5, 0, 0], np.zeros(5), np.ones(5))
    with pytest.raises(NotImplementedError, match="r_bar"):
        voronoi_loss(fitted, truth, "over")
    assert voronoi_loss(fitted, truth, "over", r_bar=8) == pytest.approx(0.5**4 + 3)
    assert voronoi_loss(fitted, truth, "over", r_bar={4: 10}) == pytest.approx(0.5**5 + 3)


def test_bad_calls_of_the_losses():
    with pytest.raises(ArgumentTypeError, match="fitted"):
        voronoi_loss(3, PLANE)
    with pytest.raises(ArgumentValueError, match="features"):
        voronoi_loss(CROSSING, PLANE)
    with pytest.raises(ArgumentValueError, match="exact"):
        voronoi_loss(doubled(PLANE, 0.1), PLANE)
    for options, name in (({"kind": "l2"}, "kind"), ({"order": 0.5}, "order"), ({"pin": "first"}, "pin")):
        with pytest.raises(ArgumentValueError, match=name):
            voronoi_loss(PLANE, PLANE, **options)


def test_hellinger_of_two_gaussians():
    for shift, v, w in ((0.5, 1.0, 1.0), (3.0, 0.25, 4.0), (0.0, 1e-4, 1.0)):
        p = MixingMeasure([0], [0], [0], [0], [v])
        q = MixingMeasure([0], [0], [0], [shift], [w])
        affinity = np.sqrt(2 * np.sqrt(v * w) / (v + w)) * np.exp(-(shift**2) / (4 * (v + w)))
        assert hellinger(p, q, [[0.0], [1.0]]) == pytest.approx(np.sqrt(1 - affinity), rel=1e-7)


def test_hellinger_laws():
    grid = np.random.default_rng(0).uniform(-1, 1, (70, 2))
    other = perturbed(PLANE, 0.1)
    assert hellinger(PLANE, PLANE, grid) == 0
    assert hellinger(PLANE, other, grid) == pytest.approx(hellinger(other, PLANE, grid), rel=1e-12)
    assert hellinger(PLANE.permute([2, 0, 1]), PLANE, grid) < 1e-8
    apart = PLANE.with_options(b=PLANE.b + 1000)
    assert hellinger(PLANE, apart, grid) == pytest.approx(1, abs=1e-7)
    rows = [hellinger(PLANE, other, row[None]) for row in grid]
    assert hellinger(PLANE, other, grid) == pytest.approx(np.mean(rows), rel=1e-12)
    with pytest.raises(ArgumentTypeError, match="q"):
        hellinger(PLANE, None, grid)
    with pytest.raises(ArgumentValueError, match="xs"):
        hellinger(PLANE, PLANE, grid[:0])


def test_a_rate_and_its_interval():
    rng = np.random.default_rng(0)
    ns = np.array([100, 300, 1000, 3000])
    covered = 0
    for _ in range(40):
        losses = 2 * ns[:, None] ** -0.5 * rng.gamma(4, 0.25, (4, 30))
        rate = convergence_rate(ns, losses, n_boot=300)
        assert rate.low < rate.slope < rate.high
        covered += rate.low < -0.5 < rate.high
    assert covered >= 33  # 95 % intervals: fewer than 33 of 40 happen once in a thousand
    exact = convergence_rate(ns, 2 * ns[:, None] ** -0.25)
    assert exact.slope == pytest.approx(-0.25) and np.exp(exact.intercept) == pytest.approx(2)
    assert np.isnan(exact.low)


def test_medians_ignore_failed_fits():
    ns = np.array([100, 1000, 10000])
    losses = np.repeat(ns[:, None] ** -0.5, 7, 1)
    losses[2, 0] = 1e6
    losses[1, 1] = np.nan
    assert convergence_rate(ns, losses, statistic="median").slope == pytest.approx(-0.5)
    assert convergence_rate(ns, losses).slope > 0


@pytest.mark.parametrize(
    ("ns", "losses", "options", "name"),
    [
        ([1, 2], [[1.0]], {}, "losses"),
        ([1, 1], [[1.0], [1.0]], {}, "ns"),
        ([0, 1], [[1.0], [1.0]], {}, "ns"),
        ([1, 2], [[1.0], [0.0]], {}, "losses"),
        ([1, 2], [[1.0], [np.nan]], {}, "losses"),
        ([1, 2], [[1.0], [1.0]], {"statistic": "max"}, "statistic"),
        ([1, 2], [[1.0], [1.0]], {"confidence": 1.0}, "confidence"),
        ([1, 2], [[1.0], [1.0]], {"n_boot": 0}, "losses"),
    ],
)
def test_bad_calls_of_rates(ns, losses, options, name):
    with pytest.raises(ArgumentValueError, match=name):
        convergence_rate(ns, losses, **options)


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh", "gelu", "silu", torch.sin])
def test_which_temperatures_are_identified(activation):
    x = np.random.default_rng(0).normal(size=(100, 2))
    for unit in (1.0, 1e-6):  # of x
        measure = PLANE.with_options(beta1=PLANE.beta1 / unit, activation=activation, temperature=0.7)
        report = gate_identifiability(measure, x * unit)
        homogeneous = activation in (None, "relu")
        assert report.temperature_identified is not homogeneous
        assert (report.ratio < 1e-8) is homogeneous
    if homogeneous:  # the direction is that of the scaling
        flat = report.flat_direction
        scale = flat["log_temperature"]
        assert flat["beta0[0]"] / scale == pytest.approx(0.3) and flat["beta0[1]"] / scale == pytest.approx(-0.2)


def test_one_expert_and_too_few_inputs():
    one = gate_identifiability(MixingMeasure([0], [0], [0], [0], [1]), [[1.0]])
    assert not one.temperature_identified and "one expert" in one.message
    few = gate_identifiability(PLANE.with_options(activation="tanh"), [[1.0, 0.5]])
    assert not few.gate_identified and few.ratio == 0
    even = PLANE.with_options(activation="tanh", beta1=0 * PLANE.beta1)
    assert gate_identifiability(even, np.zeros((50, 2))).gate_identified is False
    with pytest.raises(ArgumentValueError, match="X"):
        gate_identifiability(PLANE, np.ones((3, 1)))
    with pytest.raises(ArgumentTypeError, match="model"):
        gate_identifiability("gate", np.ones((3, 1)))
