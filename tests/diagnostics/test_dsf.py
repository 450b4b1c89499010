"""Token mixers as dynamical systems: forms, equivalences, the Taylor limit, comparison."""

import pytest
import torch

import softgate
from softgate.attention import linear_attention, normalized_attention, qlstm_scan, rglru_scan, selective_scan, ssd_scan
from softgate.diagnostics import System, compare_systems, dsf, from_softmax
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def test_names():
    assert softgate.diagnostics.dsf.System is System
    assert dsf.compare is compare_systems and dsf.from_softmax is from_softmax


def test_exact_statements_hold_to_rounding():
    errors = dsf.identities(seed=3)
    assert len(errors) == 16
    assert max(errors.values()) < 1e-10


def test_a_system_of_ones_sums():
    one = torch.ones(4, 1, 1, dtype=torch.float64)
    u = draw(2, 4, 3)
    for y in (System(one, one, one).scan(u), System(one, one, one).chunked(u, 3), System(one, one, one).quadratic(u)):
        torch.testing.assert_close(y, u.cumsum(1))


def test_each_builder_gives_the_function_of_its_mixer():
    q, k, v, eta = draw(2, 4, 9, 3), draw(2, 2, 9, 3), draw(2, 2, 9, 5), draw(2, 4, 9, 1)
    options = {"is_causal": True, "enable_gqa": True}
    torch.testing.assert_close(dsf.from_linear_attention(q, k, v).scan(), linear_attention(q, k, v, **options))
    y = dsf.from_normalized_attention(q, k, v, eta, norm="softplus").scan()
    torch.testing.assert_close(y, normalized_attention(q, k, v, eta, norm="softplus", **options))
    value, delta, a, D = draw(2, 4, 9, 5), draw(2, 4, 9).exp(), draw(4).exp(), draw(4)
    y = dsf.from_ssd(value, delta, a, k, k.flip(-1), D).scan()
    torch.testing.assert_close(y, ssd_scan(value, delta, a, k, k.flip(-1), D).output)
    u, delta, A, b, c, D = draw(2, 9, 3), draw(2, 9, 3).exp(), draw(3, 4).exp(), draw(2, 9, 4), draw(2, 9, 4), draw(3)
    torch.testing.assert_close(dsf.from_s6(u, delta, A, b, c, D).scan(), selective_scan(u, delta, A, b, c, D).output)
    gates = [draw(2, 9, 3) for _ in range(3)]
    for alpha in (None, torch.tensor(1.3, dtype=torch.float64)):
        y = dsf.from_qlstm(u, *gates, alpha).scan()
        torch.testing.assert_close(y, qlstm_scan(u, *gates, alpha).output)
    y = dsf.from_rglru(u, gates[0], gates[1], D).scan()
    torch.testing.assert_close(y, rglru_scan(u, gates[0], gates[1], D).output)


def test_phi_is_the_derivative_of_the_outputs():
    u = draw(7, 2)
    system = dsf.from_s6(u, draw(7, 2).exp(), draw(2, 3).exp(), draw(7, 3), draw(7, 3), draw(2))
    jacobian = torch.autograd.functional.jacobian(system.scan, u)  # (i, channel, j, channel)
    for channel in range(2):
        torch.testing.assert_close(system.matrix()[channel], jacobian[:, channel, :, channel])
    assert not jacobian[:, 0, :, 1].any()
    assert not system.matrix().triu(1).any()


def test_steps_continue_from_a_state():
    system = dsf.from_linear_attention(draw(1, 6, 3), draw(1, 6, 3), draw(1, 6, 2))
    state, outputs = None, []
    for t in range(6):
        y_t, state = system.step(system.u[:, t], state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, -2), system.quadratic())
    assert state.hidden.shape == (1, 2, 3) and state.position == 6 and system.state_size == 6
    with pytest.raises(StateError, match="6 tokens"):
        system.step(system.u[:, 0], state)


def test_higher_even_orders_are_nearer_to_softmax():
    q, k, v = draw(4, 1, 32, 4), draw(4, 1, 32, 4), draw(4, 1, 32, 3)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    errors = []
    for order in (0, 2, 4, 6):
        system = from_softmax(q, k, v, order=order)
        assert system.states == sum(4**p for p in range(order + 1))
        torch.testing.assert_close(system.chunked(), dsf.taylor_weights(q, k, order=order) @ v)
        errors.append(float((system.quadratic() - exact).norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * errors[1]


def test_compare_knows_rank_and_memory():
    eye = System(torch.zeros(8, 1, 1), torch.ones(8, 1, 1), torch.ones(8, 1, 1))
    total = System(torch.ones(8, 1, 1), torch.ones(8, 1, 1), torch.ones(8, 1, 1))
    found = compare_systems(eye, total, torch.ones(8, 1))
    assert found.max_difference == 1.0
    assert found.effective_rank[0] == pytest.approx(8.0)
    assert found.memory_length == pytest.approx((0.0, sum(i / 2 for i in range(8)) / 8))
    assert found.output_difference > 0 and compare_systems(total, total).output_difference != 0
    with pytest.raises(ArgumentValueError, match="one length"):
        compare_systems(eye, System(*(torch.ones(7, 1, 1),) * 3))
    with pytest.raises(ArgumentTypeError, match="b must be"):
        compare_systems(eye, torch.ones(3))


def test_bad_input():
    one = torch.ones(4, 1, 1)
    with pytest.raises(ArgumentValueError, match="Lambda"):
        System(-one, one, one)
    with pytest.raises(ArgumentValueError, match="C must"):
        System(one, one, torch.ones(4, 1, 2))
    with pytest.raises(ArgumentValueError, match="channels"):
        System(one, torch.ones(4, 2, 1), torch.ones(4, 3, 1))
    with pytest.raises(ArgumentValueError, match="u must be given"):
        System(one, one, one).scan()
    with pytest.raises(ArgumentValueError, match="u must have shape"):
        System(one, one, one).scan(torch.ones(5, 1))
    with pytest.raises(ArgumentValueError, match="chunk"):
        System(one, one, one).chunked(torch.ones(4, 1), 0)
    q = torch.ones(1, 2, 64)
    with pytest.raises(ArgumentValueError, match=r"17,043,521 per channel"):
        from_softmax(q, q, order=4)
    with pytest.raises(ArgumentValueError, match="order"):
        from_softmax(q, q, order=-1)
    u, A, b = torch.ones(1, 4, 3), torch.ones(3, 2), torch.ones(1, 4, 2)
    with pytest.raises(ArgumentValueError, match="A must be positive"):
        dsf.from_s6(u, u, -A, b, b)
