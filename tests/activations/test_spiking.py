"""Spiking neurons: closed forms, a loop over numbers with its gradient by hand, kernels, states, what is kept."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from softgate import explain, native
from softgate.activations import LIF, lif
from softgate.activations.spiking.passes import TorchPasses, run
from softgate.activations.spiking.reference import lif_reference

recompute = partial(run, TorchPasses())
ISAS = native.info()["isas"]


def by_hand(x: list[float], grads: list[float], tau: float, threshold: float, reset: str, detached: bool, alpha=4.0):
    """One neuron, number by number: spikes, last membrane, gradients of the input."""
    beta, v = 1 - 1 / tau, 0.0
    charges, spikes = [], []
    for value in x:
        charges.append(v + (value - v) / tau)
        spikes.append(float(charges[-1] >= threshold))
        v = charges[-1] * (1 - spikes[-1]) if reset == "hard" else charges[-1] - threshold * spikes[-1]
    found, gv = [0.0] * len(x), 0.0
    for t in range(len(x) - 1, -1, -1):
        sigmoid = 1 / (1 + math.exp(-alpha * (charges[t] - threshold)))
        h = alpha * sigmoid * (1 - sigmoid)
        through = gv * (1 - spikes[t]) if reset == "hard" else gv
        if not detached:
            through -= gv * h * (charges[t] if reset == "hard" else threshold)
        gu = grads[t] * h + through
        found[t], gv = gu / tau, beta * gu
    return spikes, v, found


@pytest.mark.parametrize("function", [lif, lif_reference, recompute], ids=["lif", "reference", "recompute"])
@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_spikes_and_gradients_by_hand(function, reset: str, detached: bool) -> None:
    x = (1 + 3 * torch.randn(9, 4)).requires_grad_()
    weights = torch.randn(9, 4)
    spikes, last = function(x, 3.0, 0.7, reset=reset, detach_reset=detached, return_state=True)
    (grad,) = torch.autograd.grad((weights * spikes).sum(), x)
    assert 0.1 < float(spikes.detach().mean()) < 0.9
    for n in range(4):
        expected = by_hand(x[:, n].tolist(), weights[:, n].tolist(), 3.0, 0.7, reset, detached)
        assert spikes[:, n].tolist() == expected[0]
        assert math.isclose(float(last[n].detach()), expected[1], abs_tol=1e-5)
        torch.testing.assert_close(grad[:, n], torch.tensor(expected[2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("current", [0.9, 0.99, 1.05, 1.25, 1.6, 2.0, 3.0])
def test_a_constant_current_gives_evenly_spaced_spikes(current: float) -> None:
    spikes = lif(torch.full((40, 1), current)).flatten()
    if current < 1.0:
        assert spikes.sum() == 0
        return
    period = next(k for k in range(1, 40) if current * (1 - 0.5**k) >= 1.0)
    assert spikes.nonzero().flatten().tolist() == list(range(period - 1, 40, period))


def test_one_step_is_a_threshold() -> None:
    x = torch.randn(1, 1000) * 3
    assert torch.equal(lif(x), (x >= 2.0).float())
    assert torch.equal(lif(x, 4.0, 0.5), (x >= 2.0).float())
    assert torch.equal(lif(x, 1.0), (x >= 1.0).float())
    assert lif(torch.zeros(5, 3)).sum() == 0


def test_neurons_without_a_leak_sum_up() -> None:
    x = torch.tensor([[0.4], [0.4], [0.4], [0.4], [0.9]])
    assert lif(x, None).flatten().tolist() == [0, 0, 1, 0, 1]
    assert lif(x, None, reset="soft").flatten().tolist() == [0, 0, 1, 0, 1]
    _, left = lif(x, None, reset="soft", return_state=True)
    torch.testing.assert_close(left, torch.tensor([0.5]))


def test_the_atan_surrogate() -> None:
    x = torch.tensor([[-1.0, 1.0, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(lif(x, 1.0, surrogate="atan", alpha=2.0).sum(), x)
    torch.testing.assert_close(grad, 1 / (1 + (math.pi * (x.detach() - 1)) ** 2))
    assert explain(lif, x.float(), surrogate="atan").chosen == "recompute"


@pytest.mark.skipif(not native.available(), reason="no compiled kernels")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("reset", "detached"), [("hard", True), ("hard", False), ("soft", False)])
def test_kernels_fire_exactly_where_the_reference_does(
    isa: str, dtype: torch.dtype, reset: str, detached: bool
) -> None:
    options = {"reset": reset, "detach_reset": detached, "return_state": True}
    x = (2 * torch.randn(7, 1003)).to(dtype)
    x[2, 5], x[3, 9], x[1, 11] = math.nan, math.inf, -math.inf
    x, state = x.requires_grad_(), torch.randn(1003).requires_grad_()
    assert explain(lif, x, state=state).chosen == "native"
    weights = (torch.randn(7, 1003).to(dtype), torch.randn(1003))
    with native.use_isa(isa):
        found = lif(x, 3.7, 0.5, state=state, **options)
        gradients = torch.autograd.grad(found, (x, state), weights)
    expected = lif_reference(x, 3.7, 0.5, state=state, **options)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-5}
    for a, b in zip(gradients, torch.autograd.grad(expected, (x, state), weights), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, **tolerance)


def test_nan_silences_a_neuron_and_infinity_does_not_spread() -> None:
    x = torch.tensor([[math.nan, math.inf], [5.0, 1.0], [5.0, 5.0]])
    for function in (lif, lif_reference, recompute):
        spikes, last = function(x, return_state=True)
        assert spikes.tolist() == [[0, 1], [0, 0], [0, 1]]
        assert last[0].isnan() and last[1] == 0


@pytest.mark.parametrize("steps", [6, 70], ids=["native", "more steps than the kernel holds"])
def test_a_sequence_in_two_parts_is_the_whole(steps: int) -> None:
    x = (2 * torch.randn(steps, 5)).requires_grad_()
    weights = torch.randn(steps, 5)
    whole = lif(x)
    first, state = lif(x[:4], return_state=True)
    parts = torch.cat((first, lif(x[4:], state=state)))
    assert torch.equal(parts, whole) and 0 < float(whole.detach().mean()) < 1
    expected, found = (torch.autograd.grad((weights * s).sum(), x, retain_graph=True)[0] for s in (whole, parts))
    torch.testing.assert_close(found, expected)


def test_order_of_memory_does_not_matter() -> None:
    x = 2 * torch.randn(3, 4, 6, 5, 7)
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (3, 4))
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    for other in (last, turned, x[:, :, ::2], x[..., 1:]):
        weights = torch.randn_like(other)
        grads = []
        for given in (other.detach(), other.detach().contiguous()):
            given.requires_grad_()
            spikes = lif(given)
            assert torch.equal(spikes, lif(other.contiguous()))
            grads.append(torch.autograd.grad((weights * spikes).sum(), given)[0])
        assert torch.equal(*grads)


def test_sixteen_bits_have_their_membrane_in_float32() -> None:
    x = (2 * torch.randn(12, 400)).bfloat16()
    spikes, state = lif(x, return_state=True)
    assert spikes.dtype is torch.bfloat16 and state.dtype is torch.float32
    assert torch.equal(spikes.float(), lif(x.float()))


def test_only_the_input_is_kept_for_the_gradient() -> None:
    kept: list[Tensor] = []
    x = torch.randn(4, 1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lif(x)
    assert [t.shape for t in kept] == [x.shape]


def test_gradients_can_be_differentiated_again() -> None:
    x = torch.randn(3, 4, requires_grad=True)

    def second(function) -> Tensor:
        (grad,) = torch.autograd.grad(function(x, detach_reset=False).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    torch.testing.assert_close(second(lif), second(lif_reference))


def test_the_module_keeps_nothing_between_calls() -> None:
    module = LIF(v_threshold=0.5, reset="soft")
    x = torch.randn(4, 100)
    assert torch.equal(module(x), module(x)) and not list(module.state_dict())
    assert torch.equal(module(x), lif(x, 2.0, 0.5, reset="soft"))
    assert repr(module) == "LIF(tau=2.0, v_threshold=0.5, reset='soft')"
    with pytest.raises(ValueError, match="tau"):
        LIF(tau=0.9)
