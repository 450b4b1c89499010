"""Scans of S6, SSD, qLSTM and RG-LRU: identities, continuation, memory."""

import math

import pytest
import torch
from torch.nn.functional import softplus

from softgate._math.recurrence import chunked_recurrence, doubling_scan, log2, quadratic_recurrence, segment_products
from softgate._math.recurrence_forward import forward_in_segments
from softgate._math.scan import linear_scan
from softgate._math.segments import in_segments
from softgate.attention import diagonal_scan, normalized_attention, qlstm_scan, rglru_scan, selective_scan, ssd_scan
from softgate.errors import ArgumentTypeError, ArgumentValueError


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def loop(decay, x, state):
    """h_i = decay_i ⊙ h_{i-1} + x_i along dimension 0."""
    states = []
    for d, token in zip(decay, x, strict=True):
        state = d * state + token
        states.append(state)
    return torch.stack(states)


def same_with_gradients(run_a, run_b, tensors, rtol=1e-9):
    results = []
    for run in (run_a, run_b):
        leaves = [t.clone().requires_grad_() for t in tensors]
        outputs = run(*leaves)
        loss = sum((o * torch.linspace(1, 2, o.numel(), dtype=o.dtype).reshape(o.shape)).sum() for o in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.detach().abs().max()))


@pytest.mark.parametrize(("length", "width"), [(1, 3), (2, 3), (37, 3), (64, 1), (5, 20000)])
def test_every_scan_is_the_loop(length, width):
    decay, x, state = draw(length, width).sigmoid(), draw(length, width), draw(width)
    for scan in (linear_scan, doubling_scan):
        same_with_gradients(lambda *t: [loop(*t)], lambda *t, scan=scan: [scan(*t)], (decay, x, state))


def test_second_derivatives_of_the_scan():
    tensors = [draw(7, 2).sigmoid().requires_grad_(), draw(7, 2).requires_grad_(), draw(2).requires_grad_()]
    assert torch.autograd.gradgradcheck(linear_scan, tensors, check_fwd_over_rev=False)


def test_segment_products():
    decay = draw(2, 5).sigmoid()
    products = segment_products(log2(decay.log()))
    for i in range(5):
        for j in range(5):
            expected = decay[:, j + 1 : i + 1].prod(-1) if j <= i else torch.zeros(2, dtype=torch.float64)
            torch.testing.assert_close(products[:, i, j], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_decays_are_never_subnormal(dtype):
    log_decay = torch.full((64,), 2.0 * math.log(torch.finfo(dtype).tiny) / 63, dtype=dtype).requires_grad_()
    products = segment_products(log2(log_decay))
    smallest = products[products > 0].min()
    assert torch.finfo(dtype).tiny < smallest < 2**24 * torch.finfo(dtype).tiny and products[-1, 0] == 0
    assert torch.autograd.grad(products.sum(), log_decay)[0].isfinite().all()


def test_a_decay_of_zero_forgets_without_nan():
    log_decay = torch.tensor([-0.1, float("-inf"), -0.2, float("-inf")])[:, None].double().requires_grad_()
    q, k, v, state = draw(1, 4, 2), draw(4, 2), draw(4, 3), draw(2, 3)
    for form in (quadratic_recurrence, lambda *t: chunked_recurrence(*t, chunk=3)):
        y, last = form(q, k, v, log_decay, state)
        torch.testing.assert_close(last, k[3:].mT @ v[3:])
        torch.testing.assert_close(y[0, 1], (q[0, 1] @ k[1]) * v[1])
        (gradient,) = torch.autograd.grad(y.sum() + last.sum(), log_decay)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("decays", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
def test_chunk_size_does_not_matter(chunk, decays):
    tensors = [draw(2, 3, 19, 4), draw(2, 19, 4), draw(2, 19, 2), draw(2, 4, 2)]
    tensors += [draw(2, 19, 1)] if decays else []

    def run(form, q, k, v, state, log_decay=None):
        return form(q, k, v, None if log_decay is None else -softplus(log_decay), state)

    same_with_gradients(
        lambda *t: run(quadratic_recurrence, *t),
        lambda *t: run(lambda *a: chunked_recurrence(*a, chunk=chunk), *t),
        tensors,
    )


@pytest.mark.parametrize("decays", [True, False])
@pytest.mark.parametrize(("reads", "length"), [(1, 24), (3, 19)])
def test_the_forward_pass_in_place_gives_outputs_and_the_states_between_segments(reads, length, decays):
    q, k, v, state = draw(2, reads, length, 4), draw(2, length, 4), draw(2, length, 3), draw(2, 4, 3)
    log_decay = -softplus(draw(2, length, 1)) if decays else None
    y, borders = forward_in_segments(q, k, v, log_decay, state, chunk=4, segment=8)
    expected, last = quadratic_recurrence(q, k, v, log_decay, state)
    torch.testing.assert_close(y, expected)
    assert len(borders) == 4 and borders[0] is state
    torch.testing.assert_close(borders[-1], last)
    part = [x[..., :16, :] if x is not None else None for x in (q, k, v, log_decay)]
    torch.testing.assert_close(borders[2], quadratic_recurrence(*part, state)[1])


def test_segments_keep_values_and_both_derivatives():
    x, state, factor = draw(1, 11, 2), draw(1, 2), draw(2)

    def step(state, sequences, constants):
        (piece,) = sequences
        summed = state[..., None, :] + (piece * constants[0]).tanh().cumsum(-2)
        return summed.square(), summed[..., -1, :]

    def segmented(x, state, factor):
        return in_segments(step, state, (x,), (factor,), length=4)

    same_with_gradients(lambda x, s, f: step(s, (x,), (f,)), segmented, (x, state, factor))
    leaves = [t.requires_grad_() for t in (x, state, factor)]
    assert torch.autograd.gradgradcheck(lambda *t: segmented(*t)[0], leaves)


def s6_inputs(length=70, channels=3, states=4):
    u, delta, A = draw(2, length, channels), draw(2, length, channels).exp(), draw(channels, states).exp()
    return u, delta, A, draw(2, length, states), draw(2, length, states), draw(channels)


def test_selective_scan_is_its_definition_whatever_runs_it(monkeypatch):
    def by_hand(u, delta, A, B, C, D):
        h, outputs = torch.zeros(2, 3, 4, dtype=torch.float64), []
        for t in range(u.shape[1]):
            h = (-delta[:, t, :, None] * A).exp() * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
            outputs.append((h * C[:, t, None]).sum(-1) + D * u[:, t])
        return torch.stack(outputs, 1), h

    for kernels in ("auto", "reference"):
        monkeypatch.setenv("SOFTGATE_KERNELS", kernels)
        same_with_gradients(by_hand, selective_scan, s6_inputs())


def test_s6_with_one_decay_is_ssd():
    u, delta, A, B, C, D = s6_inputs()
    delta, a = delta[..., :1], A[0, 0]
    s6 = selective_scan(u, delta.expand_as(u), a.expand(3, 4), B, C, D[:1].expand(3))
    ssd = ssd_scan(u[:, None], delta.mT, a[None], B[:, None], C[:, None], D[:1], chunk=16)
    torch.testing.assert_close(s6.output, ssd.output[:, 0])
    torch.testing.assert_close(s6.state, ssd.state[:, 0].mT)


def test_ssd_without_decay_is_unnormalised_linear_attention():
    v, B, C = draw(1, 2, 150, 3), draw(1, 1, 150, 4), draw(1, 1, 150, 4)
    y = ssd_scan(v, torch.ones(1, 2, 150).double(), torch.zeros(2).double(), B, C, allow_unstable=True).output
    torch.testing.assert_close(y, (C @ B.mT).tril() @ v)


def test_decay_of_s6_is_a_power_of_a_reversed_sigmoid():
    x, A = 5.0 * draw(500), draw(500).exp()
    torch.testing.assert_close((-A * softplus(x)).exp(), torch.sigmoid(-x) ** A)


def test_reversed_qlstm_with_alpha_one_is_the_standard_one_with_negated_logits():
    x, f, i, o = (draw(2, 9, 3) for _ in range(4))
    reversed_ = qlstm_scan(x, f, i, o, torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(reversed_, qlstm_scan(x, -f, i, o))


@pytest.mark.parametrize("alpha", [0.0, -2.0])
def test_reversed_qlstm_with_alpha_not_positive_never_forgets(alpha):
    x, f, i, o = (draw(1, 9, 3) for _ in range(4))
    y = qlstm_scan(x, f, i, o, torch.tensor(alpha, dtype=torch.float64)).output
    torch.testing.assert_close(y, o.sigmoid() * (i.sigmoid() * x).cumsum(1))


def test_rglru_is_its_definition():
    x, r, i, a = draw(1, 6, 3), draw(1, 6, 3), draw(1, 6, 3), draw(3)
    decay = (-8 * softplus(a) * r.sigmoid()).exp()
    added = (1 - decay**2 + 1e-6).sqrt() * i.sigmoid() * x
    expected = loop(decay[0], added[0], torch.zeros(3).double())
    torch.testing.assert_close(rglru_scan(x, r, i, a).output[0], expected)


SCANS = {
    "diagonal": lambda t, state: (lambda h: (h, h[:, -1]))(diagonal_scan(t[0].sigmoid(), t[1], state)),
    "s6": lambda t, state: selective_scan(t[0], t[1].exp(), torch.ones(3, 3).double(), t[2], t[3], state=state),
    "ssd": lambda t, state: ssd_scan(
        t[0][:, None], t[1][:, None, :, 0].exp(), torch.ones(1).double(), t[2][:, None], t[3][:, None], None, state
    ),
    "qlstm": lambda t, state: qlstm_scan(t[0], t[1], t[2], t[3], None, state),
    "rglru": lambda t, state: rglru_scan(t[0], t[1], t[2], torch.ones(3).double(), state),
}


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("cut", [1, 8, 39])
def test_a_run_can_be_cut_anywhere(name, cut):
    tensors = [draw(2, 40, 3) for _ in range(4)]
    whole, last = SCANS[name](tensors, None)
    first, state = SCANS[name]([t[:, :cut] for t in tensors], None)
    second, end = SCANS[name]([t[:, cut:] for t in tensors], state)
    torch.testing.assert_close(torch.cat((first, second), -2), whole)
    torch.testing.assert_close(end, last)


@pytest.mark.parametrize("name", SCANS)
def test_later_tokens_do_not_reach_earlier_outputs(name):
    tensors = [draw(1, 30, 3) for _ in range(4)]
    other = [torch.cat((t[:, :20], draw(1, 10, 3)), 1) for t in tensors]
    before, after = SCANS[name](tensors, None)[0], SCANS[name](other, None)[0]
    torch.testing.assert_close(before[..., :20, :], after[..., :20, :], rtol=0, atol=0)
    assert not torch.allclose(before[..., 20:, :], after[..., 20:, :])


def peak_bytes(run):
    """Largest sum of memory that torch holds at once while ``run`` works, beyond what it held before."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def sums_of_outer_products(q, k, v):
    """The authors' form, which holds (…, L, N, D) several times over."""
    return (q[..., None] * (k[..., None] * v[..., None, :]).cumsum(-3)).sum(-2)


def test_memory_is_a_fiftieth_of_that_of_all_states():
    n, lengths, peaks = 128, (128, 4096), {}
    for length in lengths:
        q, k, v = (torch.randn(1, 1, length, n, requires_grad=True) for _ in range(3))
        eta = torch.zeros(1, 1, length, 1)

        def ours(q=q, k=k, v=v, eta=eta):
            return normalized_attention(q, k, v, eta, is_causal=True)

        run = ours if length == 4096 else lambda q=q, k=k, v=v: sums_of_outer_products(q, k, v)
        with torch.no_grad():
            peaks["forward", length] = peak_bytes(run) / length
        peaks["both", length] = peak_bytes(lambda run=run: run().sum().backward()) / length
    for what in ("forward", "both"):
        assert 0 < 50 * peaks[what, 4096] < peaks[what, 128]


def test_the_selective_scan_never_holds_all_states():
    length, n, d = 4096, 64, 32
    u, delta, B, C = (torch.rand(1, length, size, requires_grad=True) for size in (d, d, n, n))
    A = torch.rand(d, n, requires_grad=True)
    assert 0 < peak_bytes(lambda: selective_scan(u, delta, A, B, C).output.sum().backward()) < 4 * length * n * d / 4


def test_bad_input():
    u, A, b = torch.ones(1, 4, 3), torch.ones(3, 2), torch.ones(1, 4, 2)
    with pytest.raises(ArgumentValueError, match="A must be positive"):
        selective_scan(u, u, -A, b, b)
    assert selective_scan(u, u, -A, b, b, allow_unstable=True).output.isfinite().all()
    with pytest.raises(ArgumentTypeError, match="allow_unstable"):
        selective_scan(u, u, A, b, b, allow_unstable=1)
    with pytest.raises(ArgumentTypeError, match="delta"):
        selective_scan(u, u.double(), A, b, b)
    with pytest.raises(ArgumentValueError, match="groups dividing"):
        ssd_scan(
            torch.ones(1, 3, 4, 2), torch.ones(1, 3, 4), torch.ones(3), torch.ones(1, 2, 4, 2), torch.ones(1, 2, 4, 2)
        )
    with pytest.raises(ArgumentValueError, match="decay"):
        diagonal_scan(torch.ones(2, 4, 3), u)


def test_half_precision_keeps_a_float32_state():
    u, A, b = torch.rand(1, 4, 3).bfloat16(), torch.ones(3, 2), torch.rand(1, 4, 2).bfloat16()
    output, state = selective_scan(u, u, A, b, b)
    assert output.dtype is torch.bfloat16 and state.dtype is torch.float32
